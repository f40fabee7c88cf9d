#include "gemm.h"
#include "lanes.h"

namespace jetkern::JETKERN_ISA {

// The transpose of weight (outputs, inputs) in panels, which `linear` takes.
void linear_panels(const float* weight, int64_t inputs, int64_t outputs, bool bf16, float* to) {
  pack(weight, 1, inputs, inputs, outputs, to, bf16);
}

// y (rows, outputs) = x (rows, inputs) W^T + bias, null for none. Each number is summed alone, in
// the order of the inputs: its bits do not depend on the other rows.
void linear(const float* x, const float* panels, const float* bias, int64_t rows, int64_t inputs,
            int64_t outputs, bool bf16, float* y) {
  const Right right = packed(panels, inputs, bf16);
  gemm(rows, outputs, inputs, x, inputs, 1, right, y, outputs, false, right.tiles ? bias : nullptr);
  if (!bias || right.tiles) return;
  for (int64_t i = 0; i < rows; i++)
    for (int64_t c = 0; c < outputs; c += W) {
      const int64_t columns = outputs - c < W ? outputs - c : W;
      float* to = y + i * outputs + c;
      store_first(to, load_first(to, columns) + load_first(bias + c, columns), columns);
    }
}

// The transpose of x (rows, inputs) in panels, which `linear_turned` takes.
void linear_rows(const float* x, int64_t rows, int64_t inputs, float* to) {
  pack(x, 1, inputs, inputs, rows, to);
}

int64_t linear_turned_scratch(int64_t rows, int64_t outputs) {
  return outputs * round_up(rows, W);
}

// Some outputs of `linear`, to the bit, from their weights as they are: where rows are few, turning
// these and the result is less work than turning the weights. y has y_row numbers a row.
void linear_turned(const float* x_panels, const float* weight, const float* bias, int64_t rows,
                   int64_t inputs, int64_t outputs, float* y, int64_t y_row, float* scratch) {
  const int64_t lanes = round_up(rows, W);
  gemm(outputs, rows, inputs, weight, inputs, 1, packed(x_panels, inputs), scratch, lanes, false);
  for (int64_t r = 0; r < rows; r += W)
    for (int64_t o = 0; o < outputs; o += W) {
      const int64_t count = rows - r < W ? rows - r : W, some = outputs - o < W ? outputs - o : W;
      vfloat v[W];
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; i++)
        v[i] = i < some ? load(scratch + (o + i) * lanes + r) : vfloat{};
      transpose(v);
      const vfloat shift = bias ? load_first(bias + o, some) : vfloat{};
      for (int64_t l = 0; l < count; l++)
        store_first(y + (r + l) * y_row + o, bias ? v[l] + shift : v[l], some);
    }
}

// Some columns of x (rows, inputs), or of a weight (outputs, inputs), in panels: right factors of the
// gradients of the weight, and of x.
void linear_columns(const float* x, int64_t rows, int64_t inputs, int64_t columns, bool bf16,
                    float* to) {
  pack(x, inputs, 1, rows, columns, to, bf16);
}

// d_x (rows, inputs) = dy (rows, outputs) W.
void linear_backward_x(const float* dy, const float* panels, int64_t rows, int64_t inputs,
                       int64_t outputs, bool bf16, float* dx) {
  gemm(rows, inputs, outputs, dy, outputs, 1, packed(panels, outputs, bf16), dx, inputs, false);
}

// Some outputs of the gradients of W and, unless null, of the bias: sums over rows of dy, which has
// dy_row numbers a row, times x; written if `fresh`, else added to.
void linear_backward_weight(const float* dy, int64_t dy_row, const float* x_panels, int64_t rows,
                            int64_t inputs, int64_t outputs, bool bf16, bool fresh, float* dw,
                            float* d_bias) {
  gemm(outputs, inputs, rows, dy, 1, dy_row, packed(x_panels, rows, bf16), dw, inputs, !fresh);
  if (!d_bias) return;
  for (int64_t c = 0; c < outputs; c += W) {
    const int64_t columns = outputs - c < W ? outputs - c : W;
    vfloat sums{};
    for (int64_t i = 0; i < rows; i++) sums += load_first(dy + i * dy_row + c, columns);
    store_first(d_bias + c, fresh ? sums : load_first(d_bias + c, columns) + sums, columns);
  }
}

}  // namespace jetkern::JETKERN_ISA
