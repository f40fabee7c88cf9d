#include "gemm.h"
#include "lanes.h"

namespace jetkern::JETKERN_ISA {

// The transpose of weight (outputs, inputs) in panels, which `linear` takes.
void linear_panels(const float* weight, int64_t inputs, int64_t outputs, float* to) {
  pack(weight, 1, inputs, inputs, outputs, to);
}

// y (rows, outputs) = x (rows, inputs) W^T + bias, null for none. Each number is summed alone, in
// the order of the inputs: its bits do not depend on the other rows.
void linear(const float* x, const float* panels, const float* bias, int64_t rows, int64_t inputs,
            int64_t outputs, float* y) {
  gemm(rows, outputs, inputs, x, inputs, 1, packed(panels, inputs), y, outputs, false);
  if (!bias) return;
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

}  // namespace jetkern::JETKERN_ISA
