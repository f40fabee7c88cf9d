#include "gemm.h"

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

}  // namespace jetkern::JETKERN_ISA
