#include "../lanes.h"

namespace jetkern::JETKERN_ISA {
namespace {

constexpr int64_t OUT = W == 16 ? 8 : 4;  // outputs per panel; OUT * SLOTS sums stay in registers
constexpr int64_t DEPTH = 128;            // inputs per pass: SLOTS * DEPTH vectors fit the L1 cache
constexpr int64_t BREADTH = 512;          // outputs per pass: BREADTH * DEPTH weights fit the L2

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

// y(s, o) = sum_k w[o * STEP + k * w_depth] x(s, k) + bias[o] + add(s, o) for N slots, OUT outputs.
template <int64_t N, int64_t STEP>
JETKERN_INLINE void panel_product(const float* w, int64_t w_depth, int64_t depth, const float* x,
                                  int64_t x_slot, int64_t x_depth, float* y, int64_t y_slot,
                                  int64_t y_out, int64_t outputs, const float* bias,
                                  const float* add) {
  vfloat acc[OUT][N];
#pragma GCC unroll 8
  for (int64_t o = 0; o < OUT; o++)
#pragma GCC unroll 4
    for (int64_t n = 0; n < N; n++) acc[o][n] = vfloat{};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k++, w += w_depth, x += x_depth) {
    vfloat xs[N];
#pragma GCC unroll 4
    for (int64_t n = 0; n < N; n++) xs[n] = load(x + n * x_slot);
#pragma GCC unroll 8
    for (int64_t o = 0; o < OUT; o++) {
      const vfloat weight = splat(w[o * STEP]);
#pragma GCC unroll 4
      for (int64_t n = 0; n < N; n++) acc[o][n] += weight * xs[n];
    }
  }
#pragma GCC unroll 8
  for (int64_t o = 0; o < OUT; o++) {
    if (o >= outputs) break;
    const vfloat start = splat(bias ? bias[o] : 0.0f);
#pragma GCC unroll 4
    for (int64_t n = 0; n < N; n++) {
      const int64_t at = n * y_slot + o * y_out;
      vfloat value = acc[o][n] + start;
      if (add) value += load(add + at);
      store(y + at, value);
    }
  }
}

// The same for any number of slots.
template <int64_t STEP>
JETKERN_INLINE void slots_product(const float* w, int64_t w_depth, int64_t depth, const float* x,
                                  int64_t x_slot, int64_t x_depth, float* y, int64_t y_slot,
                                  int64_t y_out, int64_t outputs, int64_t slots, const float* add) {
  for (int64_t s = 0; s < slots;) {
    const int64_t left = slots - s;
    const int64_t n = left == 4 ? 2 : left < SLOTS ? left : SLOTS;
    const float *from = x + s * x_slot, *a = add ? add + s * y_slot : nullptr;
    float* to = y + s * y_slot;
    if (n == 3)
      panel_product<3, STEP>(w, w_depth, depth, from, x_slot, x_depth, to, y_slot, y_out, outputs,
                             nullptr, a);
    else if (n == 2)
      panel_product<2, STEP>(w, w_depth, depth, from, x_slot, x_depth, to, y_slot, y_out, outputs,
                             nullptr, a);
    else
      panel_product<1, STEP>(w, w_depth, depth, from, x_slot, x_depth, to, y_slot, y_out, outputs,
                             nullptr, a);
    s += n;
  }
}

}  // namespace

int64_t panels_size(int64_t outputs, int64_t inputs) { return round_up(outputs, OUT) * inputs; }

Panels pack_panels(const float* w, int64_t row, int64_t column, const float* by_output,
                   const float* by_input, int64_t outputs, int64_t inputs, float* to) {
  Panels panels{to, outputs, inputs};
  for (int64_t b0 = 0; b0 < outputs; b0 += BREADTH)
    for (int64_t k0 = 0; k0 < inputs; k0 += DEPTH)
      for (int64_t o0 = b0; o0 < outputs && o0 < b0 + BREADTH; o0 += OUT) {
        float factor[OUT];
        int64_t from[OUT];
        for (int64_t o = 0; o < OUT; o++) {
          const bool inside = o0 + o < outputs;
          from[o] = inside ? (o0 + o) * row : 0;
          factor[o] = !inside ? 0.0f : by_output ? by_output[o0 + o] : 1.0f;
        }
        for (int64_t k = k0; k < inputs && k < k0 + DEPTH; k++, to += OUT) {
          const float scale = by_input ? by_input[k] : 1.0f;
          for (int64_t o = 0; o < OUT; o++) to[o] = w[from[o] + k * column] * scale * factor[o];
        }
      }
  return panels;
}

void product(const Panels& w, const float* x, int64_t x_row, float* y, int64_t y_row, int64_t slots,
             const float* bias, const float* add) {
  const int64_t x_step = x_row * W, y_step = y_row * W;
  const float* block = w.data;
  for (int64_t b0 = 0; b0 < w.outputs; b0 += BREADTH) {
    const int64_t breadth = w.outputs - b0 < BREADTH ? w.outputs - b0 : BREADTH;
    for (int64_t k0 = 0; k0 < w.inputs; k0 += DEPTH) {
      const int64_t depth = w.inputs - k0 < DEPTH ? w.inputs - k0 : DEPTH;
      const float* start = k0 ? y : add;
      for (int64_t s = 0; s < slots;) {
        const int64_t left = slots - s;
        const int64_t n = left == 4 ? 2 : left < SLOTS ? left : SLOTS;
        const float *panel = block, *from = x + s * x_step + k0 * W;
        for (int64_t o = b0; o < b0 + breadth; o += OUT, panel += depth * OUT) {
          const int64_t at = s * y_step + o * W;
          const float* a = start ? start + at : nullptr;
          const float* b = bias && !k0 ? bias + o : nullptr;
          const int64_t outputs = w.outputs - o < OUT ? w.outputs - o : OUT;
          if (n == 3)
            panel_product<3, 1>(panel, OUT, depth, from, x_step, W, y + at, y_step, W, outputs, b,
                                a);
          else if (n == 2)
            panel_product<2, 1>(panel, OUT, depth, from, x_step, W, y + at, y_step, W, outputs, b,
                                a);
          else
            panel_product<1, 1>(panel, OUT, depth, from, x_step, W, y + at, y_step, W, outputs, b,
                                a);
        }
        s += n;
      }
      block += depth * round_up(breadth, OUT);
    }
  }
}

void by_token(const float* tokens, int64_t row, int64_t count, int64_t depth, const float* x,
              int64_t x_row, int64_t slots, float* y) {
  const int64_t y_out = slots * W;
  for (int64_t j = 0; j < count; j += OUT) {
    const int64_t outputs = count - j < OUT ? count - j : OUT;
    slots_product<1>(tokens + j / W * row * W + j % W, W, depth, x, x_row * W, W, y + j * y_out, W,
                     y_out, outputs, slots, nullptr);
  }
}

void over_tokens(const float* tokens, int64_t row, int64_t count, int64_t features,
                 const float* x, int64_t slots, float* y, int64_t y_row) {
  for (int64_t f = 0; f < features; f += OUT) {
    const int64_t outputs = features - f < OUT ? features - f : OUT;
    for (int64_t j = 0; j < count; j += W) {
      const int64_t depth = count - j < W ? count - j : W;
      float* to = y + f * W;
      slots_product<W>(tokens + (j / W * row + f) * W, 1, depth, x + j * slots * W, W, slots * W,
                       to, y_row * W, W, outputs, slots, j ? to : nullptr);
    }
  }
}

namespace {

constexpr int64_t ROWS = W == 4 ? 2 : 4, COLUMNS = W / ROWS;  // W sums at a time
typedef float quarter __attribute__((vector_size(COLUMNS * 4)));

// W elements of the outer product; beyond an edge they repeat the last one and are not added.
JETKERN_INLINE void outer_block(const float* y, int64_t y_step, int64_t outputs, const float* x,
                                int64_t x_step, int64_t inputs, int64_t slots, float* to,
                                int64_t to_row) {
  const float *ys[ROWS], *xs[COLUMNS];
#pragma GCC unroll 4
  for (int64_t r = 0; r < ROWS; r++) ys[r] = y + (r < outputs ? r : outputs - 1) * W;
#pragma GCC unroll 4
  for (int64_t c = 0; c < COLUMNS; c++) xs[c] = x + (c < inputs ? c : inputs - 1) * W;
  vfloat acc[W];
#pragma GCC unroll 16
  for (int64_t n = 0; n < W; n++) acc[n] = vfloat{};
  for (int64_t s = 0; s < slots; s++) {
    vfloat right[COLUMNS];
#pragma GCC unroll 4
    for (int64_t c = 0; c < COLUMNS; c++) right[c] = load(xs[c] + s * x_step);
#pragma GCC unroll 4
    for (int64_t r = 0; r < ROWS; r++) {
      const vfloat left = load(ys[r] + s * y_step);
#pragma GCC unroll 4
      for (int64_t c = 0; c < COLUMNS; c++) acc[r * COLUMNS + c] += left * right[c];
    }
  }
  float total[W];
  store(total, sums(acc));
  if (outputs >= ROWS && inputs >= COLUMNS) {
#pragma GCC unroll 4
    for (int64_t r = 0; r < ROWS; r++) {
      quarter sum, old;
      __builtin_memcpy(&sum, total + r * COLUMNS, sizeof sum);
      __builtin_memcpy(&old, to + r * to_row, sizeof old);
      old += sum;
      __builtin_memcpy(to + r * to_row, &old, sizeof old);
    }
    return;
  }
  for (int64_t r = 0; r < ROWS && r < outputs; r++)
    for (int64_t c = 0; c < COLUMNS && c < inputs; c++)
      to[r * to_row + c] += total[r * COLUMNS + c];
}

// Vectors of x and of y that a pass works on: in the L1 and in the L2 cache.
constexpr int64_t NEAR = 320, FAR = 2560;

}  // namespace

void outer_product(const float* y, int64_t y_row, int64_t outputs, const float* x, int64_t x_row,
                   int64_t inputs, int64_t slots, float* to) {
  if (!slots) return;
  const int64_t wide = round_up(NEAR / slots + 1, COLUMNS), tall = round_up(FAR / slots + 1, ROWS);
  for (int64_t o0 = 0; o0 < outputs; o0 += tall)
    for (int64_t i0 = 0; i0 < inputs; i0 += wide)
      for (int64_t o = o0; o < outputs && o < o0 + tall; o += ROWS)
        for (int64_t i = i0; i < inputs && i < i0 + wide; i += COLUMNS)
          outer_block(y + o * W, y_row * W, outputs - o, x + i * W, x_row * W, inputs - i, slots,
                      to + o * inputs + i, inputs);
}

void lane_sums(const float* y, int64_t y_row, int64_t outputs, int64_t slots, float* to) {
  for (int64_t o = 0; o < outputs; o += W) {
    const int64_t count = outputs - o < W ? outputs - o : W;
    vfloat acc[W];
#pragma GCC unroll 16
    for (int64_t n = 0; n < W; n++) {
      acc[n] = vfloat{};
      if (n < count)
        for (int64_t s = 0; s < slots; s++) acc[n] += load(y + (s * y_row + o + n) * W);
    }
    store_first(to + o, load_first(to + o, count) + sums(acc), count);
  }
}

namespace {

template <int64_t M, int64_t N>
JETKERN_INLINE void lanewise_block(int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                                   const float* b, int64_t b_row, int64_t b_column, float* c,
                                   int64_t c_row, int64_t c_column) {
  vfloat acc[M][N];
#pragma GCC unroll 8
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int64_t j = 0; j < N; j++) acc[i][j] = vfloat{};
  for (int64_t k = 0; k < depth; k++) {
    vfloat right[N];
#pragma GCC unroll 8
    for (int64_t j = 0; j < N; j++) right[j] = load(b + j * b_row + k * b_column);
#pragma GCC unroll 8
    for (int64_t i = 0; i < M; i++) {
      const vfloat left = load(a + i * a_row + k * a_column);
#pragma GCC unroll 8
      for (int64_t j = 0; j < N; j++) acc[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int64_t j = 0; j < N; j++) store(c + i * c_row + j * c_column, acc[i][j]);
}

constexpr int64_t TALL = W == 16 ? 5 : 3, WIDE = W == 16 ? 4 : 3;

template <int64_t M>
JETKERN_INLINE void lanewise_rows(int64_t columns, int64_t depth, const float* a, int64_t a_row,
                                  int64_t a_column, Strided b, float* c, int64_t c_row,
                                  int64_t c_column) {
  int64_t j = 0;
  for (; j + WIDE <= columns; j += WIDE)
    lanewise_block<M, WIDE>(depth, a, a_row, a_column, b.data + j * b.row, b.row, b.column,
                            c + j * c_column, c_row, c_column);
  const int64_t left = columns - j;
  const float* from = b.data + j * b.row;
  c += j * c_column;
  if (left == 3)
    lanewise_block<M, 3>(depth, a, a_row, a_column, from, b.row, b.column, c, c_row, c_column);
  else if (left == 2)
    lanewise_block<M, 2>(depth, a, a_row, a_column, from, b.row, b.column, c, c_row, c_column);
  else if (left == 1)
    lanewise_block<M, 1>(depth, a, a_row, a_column, from, b.row, b.column, c, c_row, c_column);
}

}  // namespace

void lanewise(int64_t rows, int64_t columns, int64_t depth, Strided a, Strided b, float* c,
              int64_t c_row, int64_t c_column) {
  int64_t i = 0;
  for (; i + TALL <= rows; i += TALL)
    lanewise_rows<TALL>(columns, depth, a.data + i * a.row, a.row, a.column, b, c + i * c_row,
                        c_row, c_column);
  for (; i + 2 <= rows; i += 2)
    lanewise_rows<2>(columns, depth, a.data + i * a.row, a.row, a.column, b, c + i * c_row, c_row,
                     c_column);
  if (i < rows)
    lanewise_rows<1>(columns, depth, a.data + i * a.row, a.row, a.column, b, c + i * c_row, c_row,
                     c_column);
}

void rows_to_slot(const float* rows, int64_t row, int64_t n, int64_t count, float* slot) {
  for (int64_t f = 0; f < n; f += W) {
    const int64_t width = n - f < W ? n - f : W;
    vfloat v[W];
#pragma GCC unroll 16
    for (int64_t l = 0; l < W; l++)
      v[l] = l < count ? load_first(rows + l * row + f, width) : vfloat{};
    transpose(v);
    for (int64_t i = 0; i < width; i++) store(slot + (f + i) * W, v[i]);
  }
}

void slot_to_rows(const float* slot, int64_t n, int64_t count, float* rows, int64_t row) {
  for (int64_t f = 0; f < n; f += W) {
    const int64_t width = n - f < W ? n - f : W;
    vfloat v[W];
#pragma GCC unroll 16
    for (int64_t i = 0; i < W; i++) v[i] = i < width ? load(slot + (f + i) * W) : vfloat{};
    transpose(v);
    for (int64_t l = 0; l < count; l++) store_first(rows + l * row + f, v[l], width);
  }
}

}  // namespace jetkern::JETKERN_ISA
