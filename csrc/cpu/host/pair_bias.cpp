#include "../pair_bias.h"

#include <algorithm>

#include "parallel.h"

namespace jetkern {

namespace {

PairPerceptron perceptron(const Tensor& fc1_weight, const Tensor& fc1_bias,
                          const Tensor& fc2_weight, const Tensor& fc2_bias) {
  const int64_t hidden = fc1_weight.size(0), heads = fc2_weight.size(0);
  if (fc1_weight.size(1) != 3 || fc1_bias.numel() != hidden || fc2_weight.size(1) != hidden ||
      fc2_bias.numel() != heads)
    throw std::runtime_error("the perceptron's weights do not fit together");
  return {hidden,
          heads,
          data<float>(fc1_weight, "fc1_weight"),
          data<float>(fc1_bias, "fc1_bias"),
          data<float>(fc2_weight, "fc2_weight"),
          data<float>(fc2_bias, "fc2_bias")};
}

// The jets in runs of about equal numbers of pairs.
std::vector<PairRun> runs(const Tensor& particles, const Tensor& offsets, int64_t most) {
  const int64_t* rows = data<int64_t>(offsets, "offsets");
  const int64_t jets = offsets.size(0) - 1;
  check_offsets(rows, jets, particles.size(0));
  auto bounds = split(jets, most, [&](int64_t b) { return square(rows[b + 1] - rows[b]) + 1.0; });
  std::vector<PairRun> all;
  int64_t pairs = 0;
  for (size_t i = 0; i + 1 < bounds.size(); i++) {
    all.push_back({data<float>(particles, "particles"), particles.size(1), rows, bounds[i],
                   bounds[i + 1], pairs, 0});
    for (int64_t b = bounds[i]; b < bounds[i + 1]; b++) {
      int64_t n = rows[b + 1] - rows[b];
      pairs += n * n;
    }
  }
  for (auto& run : all) run.pairs = pairs;
  return all;
}

}  // namespace

// -> bias (H, P). num_pairs is P, or -1 if the caller does not know it.
Tensor pair_bias(const Tensor& particles, const Tensor& offsets, const Tensor& fc1_weight,
                 const Tensor& fc1_bias, const Tensor& fc2_weight, const Tensor& fc2_bias,
                 int64_t num_pairs) {
  const auto p = perceptron(fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  const auto all = runs(particles, offsets, 256);
  const int64_t pairs = all.empty() ? 0 : all[0].pairs;
  if (num_pairs >= 0 && num_pairs != pairs)
    throw std::runtime_error("num_pairs is " + std::to_string(num_pairs) + ", the jets have " +
                             std::to_string(pairs) + " pairs");
  Tensor bias = torch::stable::new_empty(particles, {p.heads, pairs});
  float* to = data<float>(bias, "bias");
  auto run = JETKERN_SELECT(pair_bias_forward);
  parallel(all.size(), pair_scratch(p.hidden, p.heads),
           [&](int64_t i, float* scratch) { run(p, all[i], to, scratch); });
  return bias;
}

// -> the gradients of the particles (empty unless wanted) and of the four weights
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pair_bias_backward(
    const Tensor& dbias, const Tensor& particles, const Tensor& offsets, const Tensor& fc1_weight,
    const Tensor& fc1_bias, const Tensor& fc2_weight, const Tensor& fc2_bias, int64_t,
    bool want_particles) {
  const auto p = perceptron(fc1_weight, fc1_bias, fc2_weight, fc2_bias);
  const int64_t size = pair_gradient_size(p.hidden, p.heads);
  const int64_t most = (int64_t{1} << 20) / size;  // 4 MiB of partial sums, 16 to 256 of them
  const auto all = runs(particles, offsets, most < 16 ? 16 : most > 256 ? 256 : most);
  if (dbias.size(0) != p.heads || dbias.size(1) != (all.empty() ? 0 : all[0].pairs))
    throw std::runtime_error("dbias must be (H, P)");
  const float* from = data<float>(dbias, "dbias");
  Tensor d_particles = want_particles ? torch::stable::empty_like(particles)
                                      : torch::stable::new_empty(particles, {0});
  float* to = want_particles ? data<float>(d_particles, "d_particles") : nullptr;
  Scratch parts(all.size() * size * sizeof(float));
  auto run = JETKERN_SELECT(pair_bias_backward);
  parallel(all.size(), pair_scratch(p.hidden, p.heads), [&](int64_t i, float* scratch) {
    run(p, all[i], from, parts.floats() + i * size, to, scratch);
  });
  Scratch sums(size * sizeof(float));
  reduce(parts.floats(), all.size(), size, sums.floats());
  const float* sum = sums.floats();  // fc1_weight lies transposed in it
  Tensor d_fc1 = torch::stable::empty_like(fc1_weight);
  float* d_fc1_weight = data<float>(d_fc1, "d_fc1");
  for (int64_t c = 0; c < p.hidden; c++)
    for (int64_t k = 0; k < 3; k++) d_fc1_weight[c * 3 + k] = sum[k * p.hidden + c];
  sum += 3 * p.hidden;
  auto next = [&sum](const Tensor& like) {
    Tensor part = torch::stable::empty_like(like);
    std::copy_n(sum, like.numel(), data<float>(part, "part"));
    sum += like.numel();
    return part;
  };
  Tensor d_fc1_bias = next(fc1_bias), d_fc2 = next(fc2_weight), d_fc2_bias = next(fc2_bias);
  return {d_particles, d_fc1, d_fc1_bias, d_fc2, d_fc2_bias};
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("pair_bias", TORCH_BOX(&jetkern::pair_bias));
  m.impl("pair_bias_backward", TORCH_BOX(&jetkern::pair_bias_backward));
}
