#include "../linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>

#include "parallel.h"

namespace jetkern {

namespace {

constexpr int64_t TILE = Vocabulary::TILE;
constexpr int64_t PARTS = 32;               // of the classes, whose shares of d_x are summed
constexpr int64_t ROOM = int64_t{1} << 20;  // floats that those shares may take
constexpr int64_t SUM_PARTS = 16;           // the same where the logits of a run of rows are kept,
constexpr int64_t LOGITS = int64_t{1} << 21;  // floats that these may take

Vocabulary vocabulary(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                      const Tensor& target, bool bf16) {
  const int64_t classes = weight.size(0), width = weight.size(1);
  if (x.size(1) != width || target.size(0) != x.size(0) || (bias && bias->size(0) != classes))
    throw std::runtime_error("x, weight, bias and target do not fit each other");
  const int64_t* wanted = data<int64_t>(target, "target");
  for (int64_t i = 0; i < x.size(0); i++)
    if (wanted[i] >= classes)
      throw std::runtime_error("target of row " + std::to_string(i) + " is " +
                               std::to_string(wanted[i]) + ", there are " +
                               std::to_string(classes) + " classes");
  return {classes, width, data<float>(x, "x"), data<float>(weight, "weight"),
          bias ? data<float>(*bias, "bias") : nullptr, wanted, bf16};
}

int64_t tiles(int64_t n) { return (n + TILE - 1) / TILE; }

}  // namespace

// -> loss (T), softmax (T, 2)
std::tuple<Tensor, Tensor> linear_cross_entropy(const Tensor& x, const Tensor& weight,
                                                std::optional<Tensor> bias, const Tensor& target,
                                                bool bf16) {
  const Vocabulary of = vocabulary(x, weight, bias, target, bf16);
  const int64_t rows = x.size(0);
  Tensor loss = torch::stable::new_empty(x, {rows});
  Tensor softmax = torch::stable::new_empty(x, {rows, 2});
  float *to = data<float>(loss, "loss"), *ends = data<float>(softmax, "softmax");
  auto run = JETKERN_SELECT(linear_cross_entropy_forward);
  parallel(tiles(rows), linear_cross_entropy_scratch(of.width), [&](int64_t i, float* scratch) {
    run(of, i * TILE, std::min(TILE, rows - i * TILE), to, ends, scratch);
  });
  return {loss, softmax};
}

// -> d_x (empty unless wanted), d_weight, d_bias (empty without a bias)
std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(
    const Tensor& d_loss, const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
    const Tensor& target, bool bf16, const Tensor& softmax, bool want_x) {
  const Vocabulary of = vocabulary(x, weight, bias, target, bf16);
  const int64_t rows = x.size(0), width = of.width;
  Tensor d_x = torch::stable::new_empty(x, {want_x ? rows : 0, width});
  Tensor d_weight = torch::stable::new_empty(weight, {of.classes, width});
  Tensor d_bias = torch::stable::new_empty(weight, {bias ? of.classes : 0});
  const float *slopes = data<float>(d_loss, "d_loss"), *ends = data<float>(softmax, "softmax");
  float *to_x = want_x ? data<float>(d_x, "d_x") : nullptr;
  float *to_weight = data<float>(d_weight, "d_weight");
  float *to_bias = bias ? data<float>(d_bias, "d_bias") : nullptr;
  if (!rows) {
    std::memset(to_weight, 0, of.classes * width * sizeof(float));
    if (to_bias) std::memset(to_bias, 0, of.classes * sizeof(float));
  }
  // A part of the classes is one thread's, whatever their number, and rows come in order: each sum
  // has one order. Runs of rows bound the room that the parts' shares of d_x take.
  const int64_t part = (tiles(of.classes) + PARTS - 1) / PARTS * TILE;
  const int64_t parts = part ? (of.classes + part - 1) / part : 0;
  const int64_t most = std::max<int64_t>(ROOM / std::max<int64_t>(parts * width * TILE, 1), 1) * TILE;
  Scratch shares(want_x ? parts * std::min(most, rows) * width * int64_t{sizeof(float)} : 0);
  auto run = JETKERN_SELECT(linear_cross_entropy_backward);
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    parallel(parts, linear_cross_entropy_scratch(width), [&](int64_t p, float* scratch) {
      float* own = want_x ? shares.floats() + p * count * width : nullptr;
      for (int64_t i = 0; i < count; i += TILE)
        run(of, first + i, std::min(TILE, count - i), p * part,
            std::min(p * part + part, of.classes), slopes, ends, first + i == 0, to_weight, to_bias,
            own ? own + i * width : nullptr, scratch);
    });
    if (want_x) reduce(shares.floats(), parts, count * width, to_x + first * width);
  }
  return {d_x, d_weight, d_bias};
}

// -> the sum of the rows' losses, and its d_x, d_weight, d_bias, which are empty unless wanted
std::tuple<Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_sum(
    const Tensor& x, const Tensor& weight, std::optional<Tensor> bias, const Tensor& target,
    bool bf16, bool gradients) {
  const Vocabulary of = vocabulary(x, weight, bias, target, bf16);
  const int64_t rows = x.size(0), width = of.width, classes = of.classes;
  Tensor total = torch::stable::new_empty(x, {});
  Tensor d_x = torch::stable::new_empty(x, {gradients ? rows : 0, width});
  Tensor d_weight = torch::stable::new_empty(weight, {gradients ? classes : 0, width});
  Tensor d_bias = torch::stable::new_empty(weight, {gradients && bias ? classes : 0});
  float* to_weight = data<float>(d_weight, "d_weight");
  float* to_bias = bias ? data<float>(d_bias, "d_bias") : nullptr;
  if (!rows && gradients) {
    std::memset(to_weight, 0, classes * width * sizeof(float));
    if (to_bias) std::memset(to_bias, 0, classes * sizeof(float));
  }
  // As in the backward, a part of the classes is one thread's and rows come in order. A run of rows
  // is as long as its logits take little room: the longer, the less often d_weight goes by.
  const int64_t part = (tiles(classes) + SUM_PARTS - 1) / SUM_PARTS * TILE;
  const int64_t parts = part ? (classes + part - 1) / part : 0;
  const int64_t fit = LOGITS / std::max<int64_t>(classes, 1) / TILE * TILE;
  const int64_t most = std::min(std::clamp(fit, TILE / 4, 4 * TILE), rows);
  const int64_t lanes = (most + Vocabulary::LANES - 1) / Vocabulary::LANES * Vocabulary::LANES;
  Scratch room((classes * lanes + linear_cross_entropy_panels(most, width) +
                parts * (3 * lanes + (gradients ? most * width : 0)) + 2 * lanes) *
               int64_t{sizeof(float)});
  float* logits = room.floats();
  float* panels = logits + classes * lanes;
  float* ends = panels + linear_cross_entropy_panels(most, width);  // of each part
  float *top = ends + 3 * parts * lanes, *inverse = top + lanes, *shares = inverse + lanes;
  auto pack = JETKERN_SELECT(linear_cross_entropy_panels);
  auto forward = JETKERN_SELECT(linear_cross_entropy_logits);
  auto backward = JETKERN_SELECT(linear_cross_entropy_gradient);
  double sum = 0.0;
  for (int64_t first = 0; first < rows; first += most) {
    const int64_t count = std::min(most, rows - first);
    const int64_t own = (count + Vocabulary::LANES - 1) / Vocabulary::LANES * Vocabulary::LANES;
    pack(of, first, count, panels);
    parallel(parts, 0, [&](int64_t p, float*) {
      float* end = ends + 3 * p * lanes;
      forward(of, first, count, p * part, std::min(p * part + part, classes), panels,
              logits + p * part * own, end, end + lanes, end + 2 * lanes);
    });
    for (int64_t i = 0; i < own; i++) {
      top[i] = -std::numeric_limits<float>::infinity();
      float denominator = 0.0f, picked = 0.0f;
      for (int64_t p = 0; p < parts; p++) top[i] = std::max(top[i], ends[3 * p * lanes + i]);
      for (int64_t p = 0; p < parts; p++) {
        const float* end = ends + 3 * p * lanes + i;
        if (end[lanes] != 0.0f) denominator += end[lanes] * std::exp(*end - top[i]);
        picked += end[2 * lanes];
      }
      const bool counts = i < count && of.target[first + i] >= 0;
      inverse[i] = counts ? 1.0f / denominator : 0.0f;
      if (counts) sum += std::log(denominator) + (top[i] - picked);
    }
    if (!gradients) continue;
    parallel(parts, linear_cross_entropy_sum_scratch(width), [&](int64_t p, float* scratch) {
      backward(of, first, count, p * part, std::min(p * part + part, classes), panels,
               logits + p * part * own, top, inverse, !first, to_weight, to_bias,
               shares + p * count * width, scratch);
    });
    reduce(shares, parts, count * width, data<float>(d_x, "d_x") + first * width);
  }
  *data<float>(total, "total") = static_cast<float>(sum);
  return {total, d_x, d_weight, d_bias};
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&jetkern::linear_cross_entropy));
  m.impl("linear_cross_entropy_backward", TORCH_BOX(&jetkern::linear_cross_entropy_backward));
  m.impl("linear_cross_entropy_sum", TORCH_BOX(&jetkern::linear_cross_entropy_sum));
}
