#include <algorithm>
#include <optional>
#include <tuple>

#include "parallel.h"
#include "../select.h"

JETKERN_KERNEL(void, linear_panels,
               (const float* weight, int64_t inputs, int64_t outputs, bool bf16, float* to));
JETKERN_KERNEL(void, linear, (const float* x, const float* panels, const float* bias, int64_t rows,
                              int64_t inputs, int64_t outputs, bool bf16, float* y));
JETKERN_KERNEL(void, linear_rows, (const float* x, int64_t rows, int64_t inputs, float* to));
JETKERN_KERNEL(int64_t, linear_turned_scratch, (int64_t rows, int64_t outputs));
JETKERN_KERNEL(void, linear_turned,
               (const float* x_panels, const float* weight, const float* bias, int64_t rows,
                int64_t inputs, int64_t outputs, float* y, int64_t y_row, float* scratch));
JETKERN_KERNEL(void, linear_columns, (const float* x, int64_t rows, int64_t inputs, int64_t columns,
                                      bool bf16, float* to));
JETKERN_KERNEL(void, linear_backward_x,
               (const float* dy, const float* panels, int64_t rows, int64_t inputs, int64_t outputs,
                bool bf16, float* dx));
JETKERN_KERNEL(void, linear_backward_weight,
               (const float* dy, int64_t dy_row, const float* x_panels, int64_t rows,
                int64_t inputs, int64_t outputs, bool bf16, bool fresh, float* dw, float* d_bias));

namespace jetkern {

namespace {

constexpr int64_t PANELS = 64;  // a multiple of the columns of a panel of any instruction set
constexpr int64_t TILE = 96, COLUMNS = 512;  // rows, and outputs that are packed by one thread
constexpr int64_t RUN = 512;                 // rows of a partial sum of a weight's gradient

int64_t panels_bytes(int64_t depth, int64_t columns) {
  return depth * ((columns + PANELS - 1) / PANELS * PANELS) * int64_t{sizeof(float)};
}

// Whether turning the rows is less work than turning the weights: so many that they fill vectors.
bool is_few(int64_t rows, int64_t inputs, int64_t outputs) {
  return rows >= 8 && rows * (inputs + outputs) <= inputs * outputs;
}

void pack(const float* weight, int64_t inputs, int64_t outputs, bool bf16, float* panels) {
  auto run = JETKERN_SELECT(linear_panels);
  parallel((outputs + COLUMNS - 1) / COLUMNS, 0, [&](int64_t c, float*) {
    const int64_t first = c * COLUMNS;  // a whole number of panels
    run(weight + first * inputs, inputs, std::min(COLUMNS, outputs - first), bf16,
        panels + first * inputs);
  });
}

void multiply(const float* x, const float* panels, const float* bias, int64_t rows, int64_t inputs,
              int64_t outputs, bool bf16, float* to) {
  auto run = JETKERN_SELECT(linear);
  parallel((rows + TILE - 1) / TILE, 0, [&](int64_t i, float*) {
    const int64_t first = i * TILE;
    run(x + first * inputs, panels, bias, std::min(TILE, rows - first), inputs, outputs, bf16,
        to + first * outputs);
  });
}

}  // namespace

// x (T, I), weight (O, I), bias (O) -> (T, O)
Tensor linear(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, bool bf16) {
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
  if (weight.size(1) != inputs || (bias && bias->size(0) != outputs))
    throw std::runtime_error("x, weight and bias do not fit each other");
  Tensor out = torch::stable::new_empty(x, {rows, outputs});
  const float *from = data<float>(x, "x"), *w = data<float>(weight, "weight");
  const float* b = bias ? data<float>(*bias, "bias") : nullptr;
  float* to = data<float>(out, "out");
  if (!rows || !outputs) return out;
  if (!bf16 && is_few(rows, inputs, outputs)) {
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
  pack(w, inputs, outputs, bf16, panels.floats());
  multiply(from, panels.floats(), b, rows, inputs, outputs, bf16, to);
  return out;
}

// weight (O, I) -> what `linear_packed` multiplies with
Tensor linear_panels(const Tensor& weight, bool bf16) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  Tensor panels = torch::stable::new_empty(
      weight, {panels_bytes(inputs, outputs) / int64_t{sizeof(float)}});
  pack(data<float>(weight, "weight"), inputs, outputs, bf16, data<float>(panels, "panels"));
  return panels;
}

// `linear` with a weight that was packed before, to the bit.
Tensor linear_packed(const Tensor& x, const Tensor& panels, std::optional<Tensor> bias,
                     int64_t outputs, bool bf16) {
  const int64_t rows = x.size(0), inputs = x.size(1);
  if (panels.size(0) * int64_t{sizeof(float)} != panels_bytes(inputs, outputs) ||
      (bias && bias->size(0) != outputs))
    throw std::runtime_error("x, panels and bias do not fit each other");
  Tensor out = torch::stable::new_empty(x, {rows, outputs});
  multiply(data<float>(x, "x"), data<float>(panels, "panels"),
           bias ? data<float>(*bias, "bias") : nullptr, rows, inputs, outputs, bf16,
           data<float>(out, "out"));
  return out;
}

// -> d_x (empty unless wanted), d_weight, d_bias (empty without a bias)
std::tuple<Tensor, Tensor, Tensor> linear_backward(const Tensor& d_out, const Tensor& x,
                                                   const Tensor& weight, std::optional<Tensor> bias,
                                                   bool bf16, bool want_x) {
  const int64_t rows = x.size(0), inputs = x.size(1), outputs = weight.size(0);
  Tensor d_x = torch::stable::new_empty(x, {want_x ? rows : 0, inputs});
  Tensor d_weight = torch::stable::new_empty(weight, {outputs, inputs});
  Tensor d_bias = torch::stable::new_empty(weight, {bias ? outputs : 0});
  const float *dy = data<float>(d_out, "d_out"), *from = data<float>(x, "x");
  const float* w = data<float>(weight, "weight");
  float *to_x = data<float>(d_x, "d_x"), *to_weight = data<float>(d_weight, "d_weight");
  float* to_bias = bias ? data<float>(d_bias, "d_bias") : nullptr;
  auto pack = JETKERN_SELECT(linear_columns);
  const auto pack_all = [&](const float* matrix, int64_t depth, float* to) {
    parallel((inputs + COLUMNS - 1) / COLUMNS, 0, [&](int64_t c, float*) {
      const int64_t first = c * COLUMNS;  // a whole number of panels
      pack(matrix + first, depth, inputs, std::min(COLUMNS, inputs - first), bf16,
           to + first * depth);
    });
  };
  Scratch panels(panels_bytes(std::max(want_x ? outputs : 0, std::min(rows, RUN)), inputs));
  if (want_x) {
    pack_all(w, outputs, panels.floats());
    auto run = JETKERN_SELECT(linear_backward_x);
    parallel((rows + TILE - 1) / TILE, 0, [&](int64_t i, float*) {
      const int64_t first = i * TILE;
      run(dy + first * outputs, panels.floats(), std::min(TILE, rows - first), inputs, outputs,
          bf16, to_x + first * inputs);
    });
  }
  auto run = JETKERN_SELECT(linear_backward_weight);
  int64_t first = 0;
  do {  // rows in order: each sum has one order, whatever the threads
    const int64_t count = std::min(RUN, rows - first);
    pack_all(from + first * inputs, count, panels.floats());
    parallel((outputs + TILE - 1) / TILE, 0, [&](int64_t c, float*) {
      const int64_t o = c * TILE;
      run(dy + first * outputs + o, outputs, panels.floats(), count, inputs,
          std::min(TILE, outputs - o), bf16, !first, to_weight + o * inputs,
          to_bias ? to_bias + o : nullptr);
    });
  } while ((first += RUN) < rows);
  return {d_x, d_weight, d_bias};
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("linear", TORCH_BOX(&jetkern::linear));
  m.impl("linear_panels", TORCH_BOX(&jetkern::linear_panels));
  m.impl("linear_packed", TORCH_BOX(&jetkern::linear_packed));
  m.impl("linear_backward", TORCH_BOX(&jetkern::linear_backward));
}
