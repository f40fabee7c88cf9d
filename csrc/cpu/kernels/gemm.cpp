#include "gemm.h"

#include "lanes.h"

namespace jetkern::JETKERN_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int ROWS = 12;  // 24 accumulators of 32 registers
#else
constexpr int ROWS = 6;  // 12 of 16
#endif
constexpr int64_t DEPTH = 256;  // a panel of this many rows stays in the first-level cache

// R rows of C and V vectors of columns, the last of which has `last` columns. What C held is added
// last: sums over many calls, or a great depth, are sums of partial sums, which is more accurate.
template <int R, int V, bool PARTIAL>
void tile(int64_t K, const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row,
          float* c, int64_t c_row, int64_t last, bool accumulate) {
  vfloat sum[R][V] = {};
  for (int64_t k = 0; k < K; k++) {
    vfloat right[V];
    for (int v = 0; v < V; v++)
      right[v] = PARTIAL && v == V - 1 ? load_first(b + v * W, last) : load(b + v * W);
    for (int r = 0; r < R; r++) {
      vfloat left = splat(a[r * a_row]);
      for (int v = 0; v < V; v++) sum[r][v] += left * right[v];
    }
    a += a_column;
    b += b_row;
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) {
      float* to = c + r * c_row + v * W;
      if (PARTIAL && v == V - 1)
        store_first(to, accumulate ? load_first(to, last) + sum[r][v] : sum[r][v], last);
      else
        store(to, accumulate ? load(to) + sum[r][v] : sum[r][v]);
    }
}

template <int R, int V, bool PARTIAL>
void tile_of(int64_t rows, int64_t K, const float* a, int64_t a_row, int64_t a_column,
             const float* b, int64_t b_row, float* c, int64_t c_row, int64_t last,
             bool accumulate) {
  if constexpr (R > 1)
    if (rows < R)
      return tile_of<R - 1, V, PARTIAL>(rows, K, a, a_row, a_column, b, b_row, c, c_row, last,
                                        accumulate);
  tile<R, V, PARTIAL>(K, a, a_row, a_column, b, b_row, c, c_row, last, accumulate);
}

// to[k * PANEL + i] = b[k + i * column] for k < K and i < columns, zeros for the other i < PANEL.
void turn(const float* b, int64_t column, int64_t K, int64_t columns, float* to) {
  for (int64_t i = 0; i < PANEL; i += W)
    for (int64_t k = 0; k < K; k += W) {
      const int64_t left = K - k < W ? K - k : W;
      vfloat block[W];
#pragma GCC unroll 16
      for (int64_t l = 0; l < W; l++)
        block[l] = i + l < columns ? load_first(b + k + (i + l) * column, left) : vfloat{};
      transpose(block);
#pragma GCC unroll 16
      for (int64_t l = 0; l < W; l++)
        if (l < left) store(to + (k + l) * PANEL + i, block[l]);
    }
}

constexpr int64_t STEP = 2 * TILE_ROWS;  // of the summed index in a tile
constexpr int64_t PAIR = 2 * TILE_SIZE;  // floats that two tiles take
constexpr int64_t STEPS = 16;            // of a pass, whose left tiles stay in the first-level cache

JETKERN_INLINE int64_t steps_of(int64_t K) { return (K + STEP - 1) / STEP; }
JETKERN_INLINE int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

// Panels of two columns of tiles: step after step of K, both tiles of it. They begin where those of
// floats do, which are no smaller.
void pack_tiles(const float* b, int64_t row, int64_t column, int64_t K, int64_t N, float* to) {
  const bool across = row != 1;
  for (int64_t n = 0; n < N; n += PANEL)
    for (int64_t k = 0; k < K; k += STEP)
      for (int64_t half = 0; half < PANEL; half += W)
        make_tile(b + k * row + (n + half) * column, across ? row : column, across,
                  N - n - half < 0 ? 0 : at_most(N - n - half, W), at_most(K - k, STEP), false,
                  to + n * K + k / STEP * PAIR + half / W * TILE_SIZE);
}

void gemm_tiles(int64_t M, int64_t N, int64_t K, const float* a, int64_t a_row, int64_t a_column,
                Right b, float* c, int64_t c_row, bool accumulate, const float* bias) {
  alignas(64) float left[STEPS * PAIR];
  const bool across = a_column != 1;
  for (int64_t k = 0; k < K; k += STEPS * STEP, accumulate = true) {
    const int64_t steps = at_most(steps_of(K - k), STEPS);
    for (int64_t m = 0; m < M; m += 2 * W) {
      for (int64_t half = 0; half < 2 * W && m + half < M; half += W)
        for (int64_t s = 0; s < steps; s++)
          make_tile(a + (m + half) * a_row + (k + s * STEP) * a_column, across ? a_column : a_row,
                    across, at_most(M - m - half, W), at_most(K - k - s * STEP, STEP), true,
                    left + half / W * steps * TILE_SIZE + s * TILE_SIZE);
      for (int64_t n = 0; n < N; n += PANEL) {
        const float* right = b.data + n / PANEL * b.panel + k / STEP * PAIR;
        const TileFactors factors{left,      right, steps * TILE_SIZE, TILE_SIZE, CLOSE,
                                  TILE_SIZE, PAIR,  CLOSE,             steps};
        tile_sums(factors, M - m, N - n, c + m * c_row + n, c_row, accumulate,
                  bias ? bias + n : nullptr);
      }
    }
  }
}

}  // namespace

void pack(const float* b, int64_t row, int64_t column, int64_t K, int64_t N, float* to, bool bf16) {
  if constexpr (TILES)
    if (in_tiles(K, bf16)) return pack_tiles(b, row, column, K, N, to);
  for (int64_t n = 0; n < N; n += PANEL, to += K * PANEL) {
    const int64_t columns = N - n < PANEL ? N - n : PANEL;
    const float* from = b + n * column;
    if (row == 1) {
      turn(from, column, K, columns, to);
      continue;
    }
    if (column == 1 && columns == PANEL)
      for (int64_t k = 0; k < K; k++) __builtin_memcpy(to + k * PANEL, from + k * row, 4 * PANEL);
    else
      for (int64_t k = 0; k < K; k++)
        for (int64_t i = 0; i < columns; i++) to[k * PANEL + i] = from[k * row + i * column];
    if (columns < PANEL)
      for (int64_t k = 0; k < K; k++)
        for (int64_t i = columns; i < PANEL; i++) to[k * PANEL + i] = 0.0f;
  }
}

void gemm(int64_t M, int64_t N, int64_t K, const float* a, int64_t a_row, int64_t a_column, Right b,
          float* c, int64_t c_row, bool accumulate, const float* bias) {
  if (M <= 0 || N <= 0) return;
  if constexpr (TILES)
    if (b.tiles) return gemm_tiles(M, N, K, a, a_row, a_column, b, c, c_row, accumulate, bias);
  int64_t k = 0;
  do {
    int64_t depth = K - k < DEPTH ? K - k : DEPTH;
    for (int64_t n = 0; n < N; n += PANEL) {
      int64_t columns = N - n < PANEL ? N - n : PANEL;
      int64_t last = columns > W ? columns - W : columns;
      const float* right = b.data + n / PANEL * b.panel + k * b.row;
      for (int64_t m = 0, blocks = (M + ROWS - 1) / ROWS; blocks; blocks--) {
        int64_t rows = (M - m + blocks - 1) / blocks;  // blocks of about equal height
        auto* run = columns == PANEL ? tile_of<ROWS, 2, false>
                    : columns > W    ? tile_of<ROWS, 2, true>
                    : columns == W   ? tile_of<ROWS, 1, false>
                                     : tile_of<ROWS, 1, true>;
        run(rows, depth, a + m * a_row + k * a_column, a_row, a_column, right, b.row,
            c + m * c_row + n, c_row, last, accumulate);
        m += rows;
      }
    }
    k += depth;
    accumulate = true;
  } while (k < K);
}

}  // namespace jetkern::JETKERN_ISA
