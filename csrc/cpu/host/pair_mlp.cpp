#include "../pair_mlp.h"

#include "parallel.h"

namespace jetkern {

namespace {

// What forward and backward share: checked inputs, rearranged weights, and the jets in runs of about
// equal numbers of pairs.
struct Inputs {
  PairMlp mlp;
  std::vector<PairList> runs;
  Scratch panels;
  int64_t pairs = 0;

  Inputs(const Tensor& features, const Tensor& offsets, const Tensor& table, const Tensor& widths,
         int64_t most)
      : mlp(perceptron(table, widths)),
        panels(JETKERN_SELECT(pair_mlp_panels)(mlp) * int64_t{sizeof(float)}) {
    JETKERN_SELECT(pair_mlp_pack)(mlp, panels.floats());
    const float* from = data<float>(features, "features");
    const int64_t* rows = data<int64_t>(offsets, "offsets");
    const int64_t jets = offsets.size(0) - 1;
    check_offsets(rows, jets, rows[jets]);
    if (rows[jets] > features.size(0)) refuse(features, "more");  // before squares overflow
    if (!most) most = limit();
    auto bounds = split(jets, most, [&](int64_t b) { return square(rows[b + 1] - rows[b]) + 1.0; });
    int64_t entries = 0;
    for (size_t i = 0; i + 1 < bounds.size(); i++) {
      runs.push_back({from, rows, bounds[i], bounds[i + 1], entries, pairs, 0});
      for (int64_t b = bounds[i]; b < bounds[i + 1]; b++) {
        const int64_t n = rows[b + 1] - rows[b];
        pairs += n * n;
        entries += n * (n + 1) / 2;
      }
    }
    if (features.size(0) != entries || features.size(1) != mlp.widths[0])
      refuse(features, std::to_string(entries));
    for (auto& run : runs) run.pairs = pairs;
  }

  static void refuse(const Tensor& features, const std::string& wanted) {
    throw std::runtime_error("features must have one row for each of the " + wanted +
                             " pairs i <= j of the jets, got " +
                             std::to_string(features.size(0)));
  }

  // Runs whose gradients, summed apart, take up to 4 MiB.
  int64_t limit() const {
    const int64_t fit = (int64_t{1} << 20) / mlp.size();
    return fit < 16 ? 16 : fit > 256 ? 256 : fit;
  }

  static PairMlp perceptron(const Tensor& table, const Tensor& widths) {
    const int64_t *rows = data<int64_t>(table, "weights"), *own = data<int64_t>(widths, "widths");
    PairMlp mlp{};
    mlp.layers = widths.numel() - 1;
    if (mlp.layers < 1 || mlp.layers > PairMlp::MOST_LAYERS || table.size(0) != 2 * mlp.layers)
      throw std::runtime_error("the perceptron has 1 to 16 layers");
    for (int64_t l = 0; l <= mlp.layers; l++) mlp.widths[l] = own[l];
    for (int64_t i = 0; i < 2 * mlp.layers; i++) {
      const int64_t out = own[i / 2 + 1], size = i % 2 ? out : out * own[i / 2];
      if (rows[2 * i + 1] != size) throw std::runtime_error("weights have the wrong sizes");
      mlp.weights[i] = reinterpret_cast<const float*>(rows[2 * i]);
    }
    return mlp;
  }
};

// -> bias (H, P). num_pairs is P, or -1 if the caller does not know it.
Tensor pair_mlp(const Tensor& features, const Tensor& offsets, const Tensor& weights,
                const Tensor& widths, int64_t num_pairs) {
  const Inputs in(features, offsets, weights, widths, 256);
  if (num_pairs >= 0 && num_pairs != in.pairs)
    throw std::runtime_error("num_pairs is " + std::to_string(num_pairs) + ", the jets have " +
                             std::to_string(in.pairs) + " pairs");
  Tensor bias = torch::stable::new_empty(features, {in.mlp.widths[in.mlp.layers], in.pairs});
  float* to = data<float>(bias, "bias");
  auto run = JETKERN_SELECT(pair_mlp_forward);
  parallel(in.runs.size(), JETKERN_SELECT(pair_mlp_scratch)(in.mlp),
           [&](int64_t i, float* scratch) {
             run(in.mlp, in.panels.floats(), in.runs[i], to, scratch);
           });
  return bias;
}

// -> the gradients of the features (empty unless wanted) and of the weights, one after the other
std::tuple<Tensor, Tensor> pair_mlp_backward(const Tensor& d_bias, const Tensor& features,
                                             const Tensor& offsets, const Tensor& weights,
                                             const Tensor& widths, bool want_features) {
  const Inputs in(features, offsets, weights, widths, 0);
  if (d_bias.size(0) != in.mlp.widths[in.mlp.layers] || d_bias.size(1) != in.pairs)
    throw std::runtime_error("d_bias must be (H, P)");
  const float* from = data<float>(d_bias, "d_bias");
  Tensor d_features = want_features ? torch::stable::empty_like(features)
                                    : torch::stable::new_empty(features, {0});
  const int64_t size = in.mlp.size(), count = static_cast<int64_t>(in.runs.size());
  Tensor d_weights = torch::stable::new_empty(features, {size});
  float* to = want_features ? data<float>(d_features, "d_features") : nullptr;
  Scratch parts(count * size * int64_t{sizeof(float)});
  auto run = JETKERN_SELECT(pair_mlp_backward);
  parallel(count, JETKERN_SELECT(pair_mlp_scratch)(in.mlp), [&](int64_t i, float* scratch) {
    run(in.mlp, in.panels.floats(), in.runs[i], from, parts.floats() + i * size, to, scratch);
  });
  reduce(parts.floats(), count, size, data<float>(d_weights, "d_weights"));
  return {d_features, d_weights};
}

}  // namespace
}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("cpu_pair_mlp", TORCH_BOX(&jetkern::pair_mlp));
  m.impl("cpu_pair_mlp_backward", TORCH_BOX(&jetkern::pair_mlp_backward));
}
