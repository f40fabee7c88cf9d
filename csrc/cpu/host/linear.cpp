#include <algorithm>
#include <optional>

#include "parallel.h"
#include "../select.h"

JETKERN_KERNEL(void, linear_panels,
               (const float* weight, int64_t inputs, int64_t outputs, float* to));
JETKERN_KERNEL(void, linear, (const float* x, const float* panels, const float* bias, int64_t rows,
                              int64_t inputs, int64_t outputs, float* y));

namespace jetkern {

// x (T, I), weight (O, I), bias (O) -> (T, O)
Tensor linear(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias) {
  constexpr int64_t TILE = 96, COLUMNS = 512;  // rows, and outputs that are packed by one thread
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
  if (weight.size(1) != inputs || (bias && bias->size(0) != outputs))
    throw std::runtime_error("x, weight and bias do not fit each other");
  Tensor out = torch::stable::new_empty(x, {rows, outputs});
  const float *from = data<float>(x, "x"), *w = data<float>(weight, "weight");
  const float* b = bias ? data<float>(*bias, "bias") : nullptr;
  float* to = data<float>(out, "out");
  if (!rows || !outputs) return out;
  Scratch panels(inputs * ((outputs + 63) / 64 * 64) * int64_t{sizeof(float)});
  auto pack = JETKERN_SELECT(linear_panels);
  parallel((outputs + COLUMNS - 1) / COLUMNS, 0, [&](int64_t c, float*) {
    const int64_t first = c * COLUMNS;  // a whole number of panels
    pack(w + first * inputs, inputs, std::min(COLUMNS, outputs - first),
         panels.floats() + first * inputs);
  });
  auto run = JETKERN_SELECT(linear);
  parallel((rows + TILE - 1) / TILE, 0, [&](int64_t i, float*) {
    const int64_t first = i * TILE;
    run(from + first * inputs, panels.floats(), b, std::min(TILE, rows - first), inputs, outputs,
        to + first * outputs);
  });
  return out;
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("linear", TORCH_BOX(&jetkern::linear));
}
