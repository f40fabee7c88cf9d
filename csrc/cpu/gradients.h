// Gradients of weights, summed over the work of a whole batch.
#pragma once

#include <cstring>

#include "parallel.h"

namespace jetkern {

// How many partial sums of `size` floats to hold: enough for every thread to find work, in at most
// 16 MiB (fresh memory costs more time than it saves) unless four need more.
inline int64_t partial_sums(int64_t size) {
  const int64_t fit = (int64_t{16} << 20) / (size * int64_t{sizeof(float)} + 1);
  return fit < 4 ? 4 : fit > 32 ? 32 : fit;
}

// to = sum over chunks, in their order, of what work(chunk, partial, scratch) adds to `partial`.
template <class Work>
void sum_gradients(int64_t chunks, int64_t size, int64_t floats, float* to, const Work& work) {
  Scratch partial(chunks * size * int64_t{sizeof(float)});
  parallel(chunks, floats, [&](int64_t chunk, float* scratch) {
    float* mine = partial.floats() + chunk * size;
    std::memset(mine, 0, size * sizeof(float));
    work(chunk, mine, scratch);
  });
  reduce(partial.floats(), chunks, size, to);
}

}  // namespace jetkern
