#include "simd.h"

namespace jetkern::JETKERN_ISA {

namespace {

JETKERN_INLINE void neighbours(const float* x, int64_t stride, int64_t columns, int64_t first,
                               int64_t n, int64_t k, int64_t* out, float* scratch) {
  int64_t width = round_up(n, W);
  float *square = scratch, *points = scratch + 2 * width;  // (columns, width)
  float* rows = scratch + width;  // 0, 1, 2, ...: floats hold them exactly
  x += first * stride;
  for (int64_t i = 0; i < width; i++) {
    for (int64_t c = 0; c < columns; c++)
      points[c * width + i] = i < n ? x[i * stride + c] : 0.0f;
    rows[i] = static_cast<float>(i);
  }
  for (int64_t i = 0; i < n; i++, out += k) {
    for (int64_t j = 0; j < width; j += W) {
      vfloat total{};
      for (int64_t c = 0; c < columns; c++) {
        const float* axis = points + c * width;
        const vfloat d = load(axis + j) - axis[i];
        total += rounded(d * d);
      }
      store(square + j, total);
    }
    for (int64_t j = n; j < width; j++) square[j] = __builtin_inff();
    square[i] = __builtin_inff();
    // A particle's place is the number of those before it: nearer, or as near and earlier.
    for (int64_t j = 0; j < k; j++) out[j] = -1;
    for (int64_t j = 0; j < n; j += W) {
      const vfloat distance = load(square + j), row = load(rows + j);
      const int64_t after = j + W < n ? j + W : n;
      vint before{};  // minus their number
      for (int64_t l = 0; l < j; l++) before += splat(square[l]) <= distance;
      for (int64_t l = j; l < after; l++) {
        const vfloat other = splat(square[l]);
        before += (other < distance) | ((other == distance) & (splat(rows[l]) < row));
      }
      for (int64_t l = after; l < n; l++) before += splat(square[l]) < distance;
      for (int64_t l = 0; l < after - j; l++) {
        const int64_t place = -before[l];
        if (place < k && square[j + l] < __builtin_inff()) out[place] = first + j + l;
      }
    }
  }
}

}  // namespace

// Neighbours of the particles of one jet: rows `first` to `first + n`, x their coordinates (row
// `stride` apart), out (n, k). `scratch` holds (columns + 2) round_up(n, W) floats.
void knn(const float* x, int64_t stride, int64_t columns, int64_t first, int64_t n, int64_t k,
         int64_t* out, float* scratch) {
  if (columns == 2) return neighbours(x, stride, 2, first, n, k, out, scratch);  // unrolled
  neighbours(x, stride, columns, first, n, k, out, scratch);
}

}  // namespace jetkern::JETKERN_ISA
