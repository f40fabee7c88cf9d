// The gradient of an op's weights as the kernels add to it: one flat array, weight after weight.
//
// Large gradients are summed in place by all threads: every part of the array has a count of the
// tiles that have added to it, and a tile waits for its turn. The order is that of the tiles, so the
// sum does not depend on the number of threads; tiles are begun in order, so someone can always go on.
#pragma once

#include <sched.h>

#include <cstdint>

namespace jetkern {

// How much there is to sum: floats, turns and alphas.
struct GradientSize {
  int64_t floats, turns, alphas;
};

struct Gradient {
  float* to;
  double* alphas;  // of the norms: sums over all elements that largely cancel
  int64_t* turns;  // (number of turns) tiles done; null: nobody else adds to `to`
  int64_t tile;

  // Calls add() when it is this tile's turn. Every tile must come to every turn exactly once.
  template <class Add>
  inline __attribute__((always_inline)) void in_turn(int64_t turn, const Add& add) const {
    if (!turns) return add();
    for (int64_t tries = 0; __atomic_load_n(turns + turn, __ATOMIC_ACQUIRE) != tile; tries++)
      if (tries >= 1000) sched_yield();
    add();
    __atomic_store_n(turns + turn, tile + 1, __ATOMIC_RELEASE);
  }
};

}  // namespace jetkern
