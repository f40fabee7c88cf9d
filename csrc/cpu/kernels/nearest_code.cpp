#include "simd.h"

namespace jetkern::JETKERN_ISA {

// The nearest of `codes` (count, columns) to each of n points (n, columns), the lowest of equal
// ones. `scratch` holds 64 floats for every column: V vectors of points, one in each lane.
void nearest_code(const float* points, const float* codes, int64_t count, int64_t columns,
                  int64_t n, int64_t* out, float* scratch) {
  constexpr int64_t V = 4;
  for (int64_t first = 0; first < n; first += V * W) {
    const int64_t some = n - first < V * W ? n - first : V * W;
    for (int64_t i = 0; i < V * W; i++)
      for (int64_t c = 0; c < columns; c++)
        scratch[c * V * W + i] = i < some ? points[(first + i) * columns + c] : 0.0f;
    vfloat best[V];
    vint nearest[V] = {};
    for (int64_t v = 0; v < V; v++) best[v] = splat(__builtin_inff());
    for (int64_t k = 0; k < count; k++) {
      vfloat square[V] = {};
      for (int64_t c = 0; c < columns; c++) {
        const vfloat code = splat(codes[k * columns + c]);
        for (int64_t v = 0; v < V; v++) {
          const vfloat d = load(scratch + (c * V + v) * W) - code;
          square[v] += rounded(d * d);
        }
      }
      const vint here = vint{} + static_cast<int32_t>(k);
      for (int64_t v = 0; v < V; v++) {
        const vint nearer = square[v] < best[v];
        best[v] = select(nearer, square[v], best[v]);
        nearest[v] = nearer ? here : nearest[v];
      }
    }
    for (int64_t i = 0; i < some; i++) out[first + i] = nearest[i / W][i % W];
  }
}

}  // namespace jetkern::JETKERN_ISA
