// Tokens in the lanes of vectors. A slot holds W tokens: vector f of a slot is feature f of all W.
// A tile is a run of slots, `row` vectors apart, so element (slot s, feature f) is the vector at
// data + (s * row + f) * W. Products, pointwise functions and softmax then never work across lanes,
// and need no padding of widths, heads or neighbours.
#pragma once

#include "simd.h"

namespace jetkern::JETKERN_ISA {

// Vectors from one slot to the next for n features: odd, lest the slots share few cache sets.
JETKERN_INLINE int64_t slot_row(int64_t n) { return n | 1; }
JETKERN_INLINE int64_t tile_size(int64_t slots, int64_t n) { return slots * slot_row(n) * W; }

// Slots that the products take at a time; chains of them stay in the first-level cache.
constexpr int64_t SLOTS = 3;

// A matrix of weights, w(o, i) = w[o * row + i * column] * by_output[o] * by_input[i], either factor
// null for ones, and how `product` takes it: rearranged beforehand, or, where `packed` is null, block
// by block while it is used. With bf16 factors are rounded to bfloat16 and sums stay float.
struct Panels {
  const float *w, *by_output, *by_input;
  int64_t row, column, outputs, inputs;
  bool bf16;
  const float* packed;
};

// Floats of a packed matrix.
int64_t panels_size(int64_t outputs, int64_t inputs, bool bf16);
void pack_panels(const Panels& panels, float* to);

// Floats of room that `product` and `outer_product` need for a matrix and so many slots.
int64_t product_room(int64_t outputs, int64_t inputs, int64_t slots, bool bf16, bool packed);

// y[s][o] = sum_i w(o, i) x[s][i] + bias[o] + add[s][o]; bias and add may be null, add may be y and
// has its row length.
void product(const Panels& w, const float* x, int64_t x_row, float* y, int64_t y_row, int64_t slots,
             const float* bias, const float* add, float* room);

// An outer product, the gradient of a weight (outputs, inputs), of which one call does some outputs:
// to[o * inputs + i] += sum over slots and lanes of y[s][o] x[s][i].
struct Outer {
  const float *y, *x;  // x with the tokens in rows
  int64_t y_row, inputs, slots;
  bool bf16;
};
// Turns x into `room`, and rounds y and x if they are to be bfloat16; call it once before
// `outer_product`.
Outer outer(const float* y, int64_t y_row, int64_t outputs, const float* x, int64_t x_row,
            int64_t inputs, int64_t slots, bool bf16, float* room);
void outer_product(const Outer& factors, int64_t first, int64_t last, float* to);

// to[o] += sum over slots and lanes of y[s][o]: a bias's gradient.
void lane_sums(const float* y, int64_t y_row, int64_t outputs, int64_t slots, float* to);

// An operand of `lanewise`: element (i, k) is the vector at data + i * row + k * column, in floats.
struct Strided {
  const float* data;
  int64_t row, column;
};

// c(i, j) = sum_k a(i, k) b(j, k), each lane for itself.
void lanewise(int64_t rows, int64_t columns, int64_t depth, Strided a, Strided b, float* c,
              int64_t c_row, int64_t c_column);

// Attention within one segment, whose tokens fill slots from lane 0 on. In both, x and y of tokens
// against slots are (tokens, slots) vectors without gaps.
// y(j, s) = sum_d tokens(j, d) x[s][d], token j in lane j % W of slot j / W.
void by_token(const float* tokens, int64_t row, int64_t count, int64_t depth, const float* x,
              int64_t x_row, int64_t slots, float* y);
// y[s][f] = sum_j tokens(j, f) x(j, s). Reads up to OVERREAD features past the last.
void over_tokens(const float* tokens, int64_t row, int64_t count, int64_t features,
                 const float* x, int64_t slots, float* y, int64_t y_row);
constexpr int64_t OVERREAD = 7;

// Packed rows (row-major, n features) to one slot and back; lanes from `count` on become zero.
void rows_to_slot(const float* rows, int64_t row, int64_t n, int64_t count, float* slot);
void slot_to_rows(const float* slot, int64_t n, int64_t count, float* rows, int64_t row);

// Index vectors for one level of a butterfly over lanes l with distance h.
struct Lanes {
  int32_t far[W], keep[W], low[W], high[W];
};
static constexpr Lanes butterfly(int64_t h) {
  Lanes lanes{};
  for (int64_t l = 0; l < W; l++) {
    const bool second = l & h;
    lanes.keep[l] = int32_t(second ? W + l : l);
    lanes.far[l] = int32_t(second ? W + (l ^ h) : l ^ h);
    lanes.low[l] = int32_t(second ? W + (l ^ h) : l);
    lanes.high[l] = int32_t(second ? W + l : l ^ h);
  }
  return lanes;
}
template <int64_t h>
JETKERN_INLINE vfloat shuffle(vfloat a, vfloat b, const int32_t (&index)[W]) {
#if defined(__clang__)  // has no __builtin_shuffle, but finds the instruction behind this loop
  vfloat v;
#pragma unroll
  for (int64_t l = 0; l < W; l++) v[l] = index[l] < W ? a[index[l]] : b[index[l] - W];
  return v;
#else
  vint mask;
  __builtin_memcpy(&mask, index, sizeof mask);
  return __builtin_shuffle(a, b, mask);
#endif
}

template <int64_t h>
JETKERN_INLINE void exchange(vfloat (&v)[W]) {
  static constexpr Lanes lanes = butterfly(h);
#pragma GCC unroll 16
  for (int64_t i = 0; i < W; i++) {
    if (i & h) continue;
    const vfloat a = v[i], b = v[i + h];
    v[i] = shuffle<h>(a, b, lanes.low);
    v[i + h] = shuffle<h>(a, b, lanes.high);
  }
}

// Transposes W vectors in place: lane l of vector i goes to lane i of vector l.
JETKERN_INLINE void transpose(vfloat (&v)[W]) {
  if constexpr (W >= 16) exchange<8>(v);
  if constexpr (W >= 8) exchange<4>(v);
  exchange<2>(v);
  exchange<1>(v);
}

// Sums over the lanes of W vectors: lane i of the result is the sum of v[i].
template <int64_t h>
JETKERN_INLINE void fold(vfloat (&v)[W]) {
  static constexpr Lanes lanes = butterfly(h);
#pragma GCC unroll 16
  for (int64_t i = 0; i < h; i++)
    v[i] = shuffle<h>(v[i], v[i + h], lanes.keep) + shuffle<h>(v[i], v[i + h], lanes.far);
}
JETKERN_INLINE vfloat sums(vfloat (&v)[W]) {
  if constexpr (W >= 16) fold<8>(v);
  if constexpr (W >= 8) fold<4>(v);
  fold<2>(v);
  fold<1>(v);
  return v[0];
}

}  // namespace jetkern::JETKERN_ISA
