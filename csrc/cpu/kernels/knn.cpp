#include "../simd.h"

namespace jetkern::JETKERN_ISA {

// Neighbours of the particles of one jet: rows `first` to `first + n`, x their coordinates (row
// `stride` apart), out (n, k). `scratch` holds 3 round_up(n, W) + k floats.
void knn(const float* x, int64_t stride, int64_t first, int64_t n, int64_t k, int64_t* out,
         float* scratch) {
  int64_t width = round_up(n, W);
  float *eta = scratch, *phi = scratch + width, *square = scratch + 2 * width;
  float* nearest = scratch + 3 * width;
  x += first * stride;
  for (int64_t i = 0; i < width; i++) {
    eta[i] = i < n ? x[i * stride] : 0.0f;
    phi[i] = i < n ? x[i * stride + 1] : 0.0f;
  }
  for (int64_t i = 0; i < n; i++, out += k) {
    for (int64_t j = 0; j < width; j += W) {
      vfloat d_eta = load(eta + j) - eta[i], d_phi = load(phi + j) - phi[i];
      store(square + j, rounded(d_eta * d_eta) + rounded(d_phi * d_phi));
    }
    // Insertion into the sorted list of the nearest so far; equal distances stay in row order.
    int64_t have = 0;
    for (int64_t j = 0; j < n; j++) {
      float d = square[j];
      if (j == i || !(d < (have < k ? __builtin_inff() : nearest[k - 1]))) continue;
      int64_t at = have < k ? have++ : k - 1;
      for (; at > 0 && d < nearest[at - 1]; at--) {
        nearest[at] = nearest[at - 1];
        out[at] = out[at - 1];
      }
      nearest[at] = d;
      out[at] = first + j;
    }
    for (int64_t j = have; j < k; j++) out[j] = -1;
  }
}

}  // namespace jetkern::JETKERN_ISA
