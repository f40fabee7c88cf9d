// Matrix products on operands that sit in cache. Each element of C is summed in the order of k by
// one thread, so a result depends on the shapes only.
#pragma once

#include "tiles.h"

namespace jetkern::JETKERN_ISA {

constexpr int64_t PANEL = 2 * W;  // columns of B that one pass over A covers

// The right factor, (K, N): element (k, n) is data[(n / PANEL) * panel + k * row + n % PANEL], or,
// with `tiles`, it was rounded to bfloat16 by `pack`, and so is the left one while it is used.
struct Right {
  const float* data;
  int64_t row, panel;
  bool tiles;
};

// A row-major matrix as it is: fine when its rows are few or short.
JETKERN_INLINE Right row_major(const float* b, int64_t row) { return {b, row, PANEL, false}; }

// Panels of PANEL columns, each contiguous and filled up with zeros: for weights that are reused.
// With bf16 they may be tiles of bfloat16; below 16 rows that would cost accuracy for nothing.
JETKERN_INLINE bool in_tiles(int64_t K, bool bf16) { return TILES && bf16 && K >= TILE_ROWS; }
JETKERN_INLINE Right packed(const float* b, int64_t K, bool bf16 = false) {
  return {b, PANEL, K * PANEL, in_tiles(K, bf16)};
}
JETKERN_INLINE int64_t packed_size(int64_t K, int64_t N) { return K * round_up(N, PANEL); }

// Packs B(k, n) = b[k * row + n * column] into packed_size(K, N) floats; with bf16 one of row and
// column is 1.
void pack(const float* b, int64_t row, int64_t column, int64_t K, int64_t N, float* to,
          bool bf16 = false);

// C (M, N) = A B, or C += A B if accumulate. A(m, k) = a[m * a_row + k * a_column], so that
// a_row = 1 gives the product with A's transpose, as for the gradient of a weight; with tiles one of
// a_row and a_column is 1. Tiles begin with `bias`, N numbers, in each row; elsewhere it must be null.
void gemm(int64_t M, int64_t N, int64_t K, const float* a, int64_t a_row, int64_t a_column, Right b,
          float* c, int64_t c_row, bool accumulate, const float* bias = nullptr);

}  // namespace jetkern::JETKERN_ISA
