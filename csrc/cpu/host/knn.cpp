#include "parallel.h"
#include "../select.h"

JETKERN_KERNEL(void, knn, (const float* x, int64_t stride, int64_t columns, int64_t first, int64_t n,
                           int64_t k, int64_t* out, float* scratch));

namespace jetkern {

// coordinates (T, C) float32, of which the first `columns` count, offsets (B + 1) int64
// -> (T, k) int64.
Tensor knn(const Tensor& coordinates, const Tensor& offsets, int64_t k, int64_t columns) {
  const float* x = data<float>(coordinates, "coordinates");
  const int64_t* rows = data<int64_t>(offsets, "offsets");
  int64_t jets = offsets.size(0) - 1, total = coordinates.size(0), stride = coordinates.size(1);
  check_offsets(rows, jets, total);
  if (columns < 1 || columns > stride || k < 1)
    throw std::runtime_error("columns must be 1 to those of coordinates, and k at least 1");
  Tensor out = torch::stable::new_empty(offsets, {total, k});
  int64_t* to = data<int64_t>(out, "out");
  auto run = JETKERN_SELECT(knn);
  auto chunks = split(jets, 256, [&](int64_t b) { return square(rows[b + 1] - rows[b]) + 1.0; });
  int64_t floats = (columns + 2) * (longest(rows, jets) + 64);
  parallel(chunks.size() - 1, floats, [&](int64_t c, float* scratch) {
    for (int64_t b = chunks[c]; b < chunks[c + 1]; b++)
      run(x, stride, columns, rows[b], rows[b + 1] - rows[b], k, to + rows[b] * k, scratch);
  });
  return out;
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) { m.impl("knn", TORCH_BOX(&jetkern::knn)); }
