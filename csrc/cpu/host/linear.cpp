#include <algorithm>
#include <optional>

#include "parallel.h"
#include "../select.h"

JETKERN_KERNEL(void, linear_panels,
               (const float* weight, int64_t inputs, int64_t outputs, float* to));
JETKERN_KERNEL(void, linear, (const float* x, const float* panels, const float* bias, int64_t rows,
                              int64_t inputs, int64_t outputs, float* y));
JETKERN_KERNEL(void, linear_rows, (const float* x, int64_t rows, int64_t inputs, float* to));
JETKERN_KERNEL(int64_t, linear_turned_scratch, (int64_t rows, int64_t outputs));
JETKERN_KERNEL(void, linear_turned,
               (const float* x_panels, const float* weight, const float* bias, int64_t rows,
                int64_t inputs, int64_t outputs, float* y, int64_t y_row, float* scratch));

namespace jetkern {

namespace {

constexpr int64_t PANELS = 64;  // a multiple of the columns of a panel of any instruction set

int64_t panels_bytes(int64_t depth, int64_t columns) {
  return depth * ((columns + PANELS - 1) / PANELS * PANELS) * int64_t{sizeof(float)};
}

// Whether turning the rows is less work than turning the weights: so many that they fill vectors.
bool is_few(int64_t rows, int64_t inputs, int64_t outputs) {
  return rows >= 8 && rows * (inputs + outputs) <= inputs * outputs;
}

}  // namespace

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
  if (is_few(rows, inputs, outputs)) {
    constexpr int64_t SOME = 96;  // outputs of a thread, a multiple of what a pass over x makes
    Scratch panels(panels_bytes(inputs, rows));
    JETKERN_SELECT(linear_rows)(from, rows, inputs, panels.floats());
    const int64_t scratch = JETKERN_SELECT(linear_turned_scratch)(rows, SOME);
    auto run = JETKERN_SELECT(linear_turned);
    parallel((outputs + SOME - 1) / SOME, scratch, [&](int64_t c, float* own) {
      const int64_t first = c * SOME;
      run(panels.floats(), w + first * inputs, b ? b + first : nullptr, rows, inputs,
          std::min(SOME, outputs - first), to + first, outputs, own);
    });
    return out;
  }
  Scratch panels(panels_bytes(inputs, outputs));
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
