// Gradients of weights, summed over the tiles of a whole batch.
#pragma once

#include <cstring>

#include "parallel.h"
#include "../turns.h"

namespace jetkern {

// to = sum over tiles of what work(tile, gradient, scratch) adds to `gradient`; returns the sums of
// the alphas. cost(tile) is about what a tile's work costs; `floats` is the size of `scratch`.
//
// Small gradients have 4 to 32 partial sums in at most 16 MiB (fresh memory costs more time than it
// saves), so that no thread waits for another; for larger ones partial sums would take a model's worth
// of memory, and all threads add to `to` in turn.
template <class Cost, class Work>
std::vector<double> sum_gradients(int64_t tiles, const Cost& cost, const GradientSize& sizes,
                                  int64_t floats, float* to, const Work& work) {
  const int64_t size = sizes.floats;
  std::vector<double> alphas(sizes.alphas);
  const int64_t fit = (int64_t{16} << 20) / (size * int64_t{sizeof(float)} + 1);
  if (fit < 4 || tiles < 2) {
    std::memset(to, 0, size * sizeof(float));
    std::vector<int64_t> done(sizes.turns);
    parallel(tiles, floats, [&](int64_t tile, float* scratch) {
      work(tile, Gradient{to, alphas.data(), done.data(), tile}, scratch);
    });
    return alphas;
  }
  const auto bounds = split(tiles, fit < 32 ? fit : 32, cost);
  const int64_t chunks = static_cast<int64_t>(bounds.size()) - 1;
  std::vector<double> partial_alphas(chunks * sizes.alphas);
  Scratch partial(chunks * size * int64_t{sizeof(float)});
  parallel(chunks, floats, [&](int64_t chunk, float* scratch) {
    float* mine = partial.floats() + chunk * size;
    double* my_alphas = partial_alphas.data() + chunk * sizes.alphas;
    std::memset(mine, 0, size * sizeof(float));
    for (int64_t tile = bounds[chunk]; tile < bounds[chunk + 1]; tile++)
      work(tile, Gradient{mine, my_alphas, nullptr, tile}, scratch);
  });
  reduce(partial.floats(), chunks, size, to);
  for (int64_t chunk = 0; chunk < chunks; chunk++)
    for (int64_t i = 0; i < sizes.alphas; i++)
      alphas[i] += partial_alphas[chunk * sizes.alphas + i];
  return alphas;
}

}  // namespace jetkern
