#include "parallel.h"
#include "../select.h"

JETKERN_KERNEL(void, nearest_code, (const float* points, const float* codes, int64_t count,
                                    int64_t columns, int64_t n, int64_t* out, float* scratch));

namespace jetkern {

// points (T, F), codes (K, F) float32 -> (T,) int64.
Tensor nearest_code(const Tensor& points, const Tensor& codes) {
  constexpr int64_t block = 256;  // points of a chunk
  const float *x = data<float>(points, "points"), *c = data<float>(codes, "codes");
  int64_t total = points.size(0), columns = points.size(1), count = codes.size(0);
  if (codes.size(1) != columns || count < 1 || count > INT32_MAX)
    throw std::runtime_error("codes must be (K, F) with K from 1 to 2^31 - 1");
  Tensor out = torch::stable::new_empty(points, {total}, torch::headeronly::ScalarType::Long);
  int64_t* to = data<int64_t>(out, "out");
  auto run = JETKERN_SELECT(nearest_code);
  parallel((total + block - 1) / block, 64 * columns, [&](int64_t chunk, float* scratch) {
    int64_t first = chunk * block, n = total - first < block ? total - first : block;
    run(x + first * columns, c, count, columns, n, to + first, scratch);
  });
  return out;
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("nearest_code", TORCH_BOX(&jetkern::nearest_code));
}
