// Products of bfloat16 in the tile registers of Intel's AMX. A tile holds 16 rows of 64 bytes. The
// left factor has 16 pairs of the summed index in a row, the right one 16 columns of pairs; the sum
// is a float for each row and column.
#pragma once

#include "lanes.h"

namespace jetkern::JETKERN_ISA {

#if defined(__AMX_BF16__)
constexpr bool TILES = true;
#else
constexpr bool TILES = false;
#endif

constexpr int64_t TILE_ROWS = 16;                     // and pairs, or floats, of a row
constexpr int64_t TILE_SIZE = TILE_ROWS * TILE_ROWS;  // pairs, or floats, of a tile
constexpr int64_t CLOSE = TILE_ROWS * sizeof(float);  // bytes between rows without gaps

// Registers are numbers in the instructions. The caller has opened the tiles (host/parallel.h).
template <int64_t T>
JETKERN_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "n"(T));
}
template <int64_t T>
JETKERN_INLINE void load_tile(const float* from, int64_t row_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "n"(T) : "memory");
}
template <int64_t T>
JETKERN_INLINE void store_tile(float* to, int64_t row_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(row_bytes), "n"(T) : "memory");
}
// sum += left right
template <int64_t SUM, int64_t LEFT, int64_t RIGHT>
JETKERN_INLINE void multiply_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "n"(SUM), "n"(LEFT), "n"(RIGHT));
}

// Calls f with the numbers 0 to N - 1, as types whose `value` they are.
template <int64_t N>
struct Number {
  static constexpr int64_t value = N;
};
template <int64_t N, class F>
JETKERN_INLINE void each(const F& f) {
  if constexpr (N > 1) each<N - 1>(f);
  f(Number<N - 1>{});
}

// Makes a tile of floats, k < depth (at most 32) of one index n < count (at most 16), zeros beyond:
// of n k is from[n * step + k], or with `across` from[k * step + n]. A left tile has n in rows, a
// right one in columns.
JETKERN_INLINE void make_tile(const float* from, int64_t step, bool across, int64_t count,
                              int64_t depth, bool left, float* to) {
  vfloat v[W];
  const auto first = [](int64_t n) { return n < 0 ? 0 : n < W ? n : W; };
#pragma GCC unroll 16
  for (int64_t l = 0; l < W; l++) {
    const float* at = from + (across ? 2 * l : l) * step;
    if (across)
      v[l] = bf16_lanes(2 * l < depth ? load_first(at, count) : vfloat{},
                        2 * l + 1 < depth ? load_first(at + step, count) : vfloat{});
    else
      v[l] = l < count ? bf16_row(load_first(at, first(depth)), load_first(at + W, first(depth - W)))
                       : vfloat{};
  }
  if (across == left) transpose(v);
#pragma GCC unroll 16
  for (int64_t l = 0; l < W; l++) store(to + l * W, v[l]);
}

// Where the tiles of a product lie: left tile m of step k at left + m * left_tile + k * left_step, of
// rows that are left_row bytes apart, in floats; the right ones likewise.
struct TileFactors {
  const float *left, *right;
  int64_t left_tile, left_step, left_row, right_tile, right_step, right_row, depth;
};

// Sums of M x N tiles in registers m * N + n, M * N at most 4, from what they hold.
template <int64_t M, int64_t N>
JETKERN_INLINE void add_tiles(const TileFactors& f) {
  constexpr int64_t LEFT = 4, RIGHT = LEFT + (M < N ? M : 4 - N);
  static_assert(M * N <= 4 && (M <= N || N <= 2));
  const float *left = f.left, *right = f.right;
  for (int64_t k = 0; k < f.depth; k++, left += f.left_step, right += f.right_step) {
    load_tile<RIGHT>(right, f.right_row);
    if constexpr (N > 1) load_tile<RIGHT + 1>(right + f.right_tile, f.right_row);
    if constexpr (N > 2) load_tile<RIGHT + 2>(right + 2 * f.right_tile, f.right_row);
    load_tile<LEFT>(left, f.left_row);
    multiply_tiles<0, LEFT, RIGHT>();
    if constexpr (N > 1) multiply_tiles<1, LEFT, RIGHT + 1>();
    if constexpr (N > 2) multiply_tiles<2, LEFT, RIGHT + 2>();
    if constexpr (M > 1) {
      load_tile<LEFT + 1>(left + f.left_tile, f.left_row);
      multiply_tiles<N, LEFT + 1, RIGHT>();
      if constexpr (N > 1) multiply_tiles<N + 1, LEFT + 1, RIGHT + 1>();
    }
    if constexpr (M > 2) {
      load_tile<LEFT>(left + 2 * f.left_tile, f.left_row);
      multiply_tiles<2 * N, LEFT, RIGHT>();
    }
    if constexpr (M > 3) {
      load_tile<LEFT + 1>(left + 3 * f.left_tile, f.left_row);
      multiply_tiles<3 * N, LEFT + 1, RIGHT>();
    }
  }
}

// M x N tiles of a product to a row-major matrix, of which rows and columns are there: written, with
// `bias` (null for none) in each row, or added to what is there. Sums begin with either, in whole
// tiles and at the edges: the same bits.
template <int64_t M, int64_t N>
void tile_sums(const TileFactors& f, int64_t rows, int64_t columns, float* to, int64_t to_row,
               bool accumulate, const float* bias) {
  constexpr int64_t HIGH = M * W, WIDE = N * W;
  const bool whole = rows >= HIGH && columns >= WIDE;
  alignas(64) float room[HIGH * WIDE];
  const auto each_edge = [&](auto work) {
    for (int64_t r = 0; r < HIGH && r < rows; r++)
      for (int64_t c = 0; c < WIDE && c < columns; c += W)
        work(room + r * WIDE + c, r, c, columns - c < W ? columns - c : W);
  };
  if (!whole && (accumulate || bias))
    each_edge([&](float* own, int64_t r, int64_t c, int64_t count) {
      store(own, load_first(accumulate ? to + r * to_row + c : bias + c, count));
    });
  float* sums = whole ? to : room;
  const int64_t row = whole ? to_row : WIDE, bytes = row * static_cast<int64_t>(sizeof(float));
  each<M * N>([&](auto number) {
    constexpr int64_t T = decltype(number)::value;
    if (accumulate || (bias && !whole))
      load_tile<T>(sums + T / N * W * row + T % N * W, bytes);
    else if (bias)
      load_tile<T>(bias + T % N * W, 0);
    else
      clear_tile<T>();
  });
  add_tiles<M, N>(f);
  each<M * N>([&](auto number) {
    constexpr int64_t T = decltype(number)::value;
    store_tile<T>(sums + T / N * W * row + T % N * W, bytes);
  });
  if (!whole)
    each_edge([&](float* own, int64_t r, int64_t c, int64_t count) {
      store_first(to + r * to_row + c, load(own), count);
    });
}

// The same for up to 32 rows and columns.
JETKERN_INLINE void tile_sums(const TileFactors& f, int64_t rows, int64_t columns, float* to,
                              int64_t to_row, bool accumulate, const float* bias = nullptr) {
  const auto run = rows > W ? (columns > W ? tile_sums<2, 2> : tile_sums<2, 1>)
                            : (columns > W ? tile_sums<1, 2> : tile_sums<1, 1>);
  run(f, rows, columns, to, to_row, accumulate, bias);
}

}  // namespace jetkern::JETKERN_ISA
