#include "../sample_linear.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "parallel.h"

namespace jetkern {

namespace {

struct Choice {
  float logit;
  int64_t index;
};

// Larger logits first, of equal ones the lower class.
bool before(const Choice& a, const Choice& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.index < b.index);
}

// The last choice that the top_k largest, and of those the first that have top_p of the
// probability, keep; the order of `all` is lost.
Choice last_kept(std::vector<Choice>& all, int64_t top_k, double top_p, double temperature) {
  constexpr int64_t AT_A_TIME = 64;
  const int64_t most = top_k && top_k < static_cast<int64_t>(all.size()) ? top_k : all.size();
  if (!most) return {-INFINITY, 0};
  const auto begin = all.begin();
  std::nth_element(begin, begin + (most - 1), all.end(), before);
  if (top_p >= 1) return all[most - 1];
  const float top = std::min_element(begin, begin + most, before)->logit;
  const auto weight = [&](float logit) {
    return temperature ? std::exp((double{logit} - top) / temperature) : double(logit == top);
  };
  double total = 0, sum = 0;
  for (int64_t i = 0; i < most; i++) total += weight(all[i].logit);
  int64_t sorted = 0, kept = 0;
  do {
    if (kept == sorted) {
      const int64_t end = std::min(sorted + AT_A_TIME, most);
      std::partial_sort(begin + sorted, begin + end, begin + most, before);
      sorted = end;
    }
    sum += weight(all[kept++].logit);
  } while (kept < most && sum < top_p * total);
  return all[kept - 1];
}

}  // namespace

// x (T, width), weight (V, width), bias (V), keys (T), forbidden (V) bool -> (T)
Tensor sample_linear(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
                     const Tensor& keys, std::optional<Tensor> forbidden, double temperature,
                     int64_t top_k, double top_p, bool bf16) {
  const int64_t rows = x.size(0), classes = weight.size(0), width = weight.size(1);
  if (x.size(1) != width || keys.size(0) != rows || (bias && bias->size(0) != classes) ||
      (forbidden && forbidden->size(0) != classes) || classes > INT32_MAX)
    throw std::runtime_error("x, weight, bias, keys and forbidden do not fit each other");
  Draws of{};
  of.classes = classes;
  of.width = width;
  of.x = data<float>(x, "x");
  of.weight = data<float>(weight, "weight");
  of.bias = bias ? data<float>(*bias, "bias") : nullptr;
  of.forbidden = forbidden ? data<bool>(*forbidden, "forbidden") : nullptr;
  of.keys = data<int64_t>(keys, "keys");
  of.temperature = static_cast<float>(temperature);
  of.bf16 = bf16;
  Tensor out = torch::stable::new_empty(keys, {rows});
  int64_t* to = data<int64_t>(out, "out");
  std::vector<float> cuts;
  std::vector<int64_t> lasts;
  if (top_k || top_p < 1) {
    constexpr int64_t FEW = Draws::FEW;
    cuts.resize(rows);
    lasts.resize(rows);
    auto run = JETKERN_SELECT(sample_linear_logits);
    const int64_t packed = width * Draws::TILE;
    parallel((rows + FEW - 1) / FEW, packed + classes * FEW, [&](int64_t c, float* scratch) {
      const int64_t first = c * FEW, count = std::min(FEW, rows - first);
      float* logits = scratch + packed;
      run(of, first, count, logits, scratch);
      std::vector<Choice> all;
      for (int64_t i = 0; i < count; i++) {
        all.clear();
        for (int64_t j = 0; j < classes; j++) {
          const float logit = logits[j * FEW + i];
          if (std::isfinite(logit) && !(of.forbidden && of.forbidden[j])) all.push_back({logit, j});
        }
        const Choice last = last_kept(all, top_k, top_p, temperature);
        cuts[first + i] = last.logit;
        lasts[first + i] = last.index;
      }
    });
    of.cuts = cuts.data();
    of.lasts = lasts.data();
  }
  constexpr int64_t TILE = Draws::TILE;
  auto run = JETKERN_SELECT(sample_linear);
  parallel((rows + TILE - 1) / TILE, sample_linear_scratch(width), [&](int64_t i, float* scratch) {
    run(of, i * TILE, std::min(TILE, rows - i * TILE), to, scratch);
  });
  return out;
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("sample_linear", TORCH_BOX(&jetkern::sample_linear));
}
