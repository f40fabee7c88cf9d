#include "gradients.h"
#include "../segments.h"
#include "../select.h"
#include "weights.h"

JETKERN_KERNEL(int64_t, attention_block_panels, (const BlockShape&, bool backward));
JETKERN_KERNEL(void, attention_block_pack,
               (const BlockShape&, const float* const* weights, bool backward, float* panels));
JETKERN_KERNEL(GradientSize, attention_block_gradient, (const BlockShape&));
JETKERN_KERNEL(int64_t, attention_block_slots, (const Segments&, int64_t segment));
JETKERN_KERNEL(int64_t, attention_block_scratch,
               (const BlockShape&, const Segments&, int64_t first, int64_t last, bool backward));
JETKERN_KERNEL(void, attention_block_forward,
               (const BlockShape&, const float* const* weights, float* panels, const Segments&,
                int64_t first, int64_t last, const float* x, const float* bias, float* out,
                float* scratch));
JETKERN_KERNEL(void, attention_block_backward,
               (const BlockShape&, const float* const* weights, float* panels, const Segments&,
                int64_t first, int64_t last, const float* x, const float* bias,
                const float* d_out, float* dx, float* d_bias, const Gradient&, float* scratch));
JETKERN_KERNEL(void, attention_block_unfold,
               (const BlockShape&, const float* const* weights, const double* alphas,
                float* gradient));

namespace jetkern {
namespace {

// What forward and backward share: checked inputs, packed weights, and tiles of segments.
struct Inputs {
  static constexpr int64_t TILE = 12;  // slots that fill a tile, unless one segment has more

  BlockShape shape;
  Weights weights;
  const float *x, *bias = nullptr;
  Segments segments{};
  int64_t count;
  std::vector<int64_t> pairs, tiles{0};
  Scratch panels;

  Inputs(const Tensor& rows, const Tensor& offsets, const Tensor& table,
         const std::optional<Tensor>& pair_bias, const std::optional<Tensor>& particle_offsets,
         int64_t heads, int64_t hidden, int64_t parts, bool bf16, bool backward)
      : shape{rows.size(1), heads, mlp_shape(rows.size(1), hidden, rows.size(1), parts, bf16)},
        weights(table, shape),
        x(data<float>(rows, "x")),
        count(offsets.size(0) - 1),
        panels(JETKERN_SELECT(attention_block_panels)(shape, backward) * int64_t{sizeof(float)}) {
    segments.offsets = data<int64_t>(offsets, "offsets");
    check_offsets(segments.offsets, count, rows.size(0));
    if (pair_bias) {
      if (!particle_offsets || particle_offsets->size(0) != count + 1)
        throw std::runtime_error("particle_offsets must have as many jets as offsets");
      bias = data<float>(*pair_bias, "bias");
      segments.particles = data<int64_t>(*particle_offsets, "particle_offsets");
      check_offsets(segments.particles, count, segments.particles[count]);
      for (int64_t b = 0; b < count; b++) {
        const int64_t n = segments.particles[b + 1] - segments.particles[b];
        if (n > segments.offsets[b + 1] - segments.offsets[b])
          throw std::runtime_error("a jet has more particles than rows");
        pairs.push_back(segments.total_pairs);
        segments.total_pairs += n * n;
      }
      segments.pairs = pairs.data();
      if (pair_bias->size(0) != heads || pair_bias->size(1) != segments.total_pairs)
        throw std::runtime_error("bias must have a row per head and a column per pair");
    }
    auto slots = JETKERN_SELECT(attention_block_slots);
    for (int64_t b = 0, filled = 0; b < count; b++) {
      filled += slots(segments, b);
      if (filled < TILE && b + 1 < count) continue;
      tiles.push_back(b + 1);
      filled = 0;
    }
    JETKERN_SELECT(attention_block_pack)(shape, weights.data, backward, panels.floats());
  }

  int64_t number_of_tiles() const { return static_cast<int64_t>(tiles.size()) - 1; }

  int64_t scratch(bool backward) const {
    int64_t most = 0;
    for (int64_t t = 0; t < number_of_tiles(); t++) {
      const int64_t floats = JETKERN_SELECT(attention_block_scratch)(shape, segments, tiles[t],
                                                                     tiles[t + 1], backward);
      most = floats > most ? floats : most;
    }
    return most;
  }
};

Tensor attention_block(const Tensor& x, const Tensor& offsets, const Tensor& weights,
                       const std::optional<Tensor>& bias,
                       const std::optional<Tensor>& particle_offsets, int64_t heads,
                       int64_t hidden, int64_t parts, bool bf16) {
  const Inputs in(x, offsets, weights, bias, particle_offsets, heads, hidden, parts, bf16, false);
  Tensor out = torch::stable::empty_like(x);
  float* to = data<float>(out, "out");
  auto run = JETKERN_SELECT(attention_block_forward);
  parallel(in.number_of_tiles(), in.scratch(false), [&](int64_t t, float* scratch) {
    run(in.shape, in.weights.data, in.panels.floats(), in.segments, in.tiles[t], in.tiles[t + 1], in.x,
        in.bias, to, scratch);
  });
  return out;
}

// Gradients of x, of the weights, and of the bias (empty without one).
std::tuple<Tensor, Tensor, Tensor> attention_block_backward(
    const Tensor& d_out, const Tensor& x, const Tensor& offsets, const Tensor& weights,
    const std::optional<Tensor>& bias, const std::optional<Tensor>& particle_offsets,
    int64_t heads, int64_t hidden, int64_t parts, bool bf16) {
  const Inputs in(x, offsets, weights, bias, particle_offsets, heads, hidden, parts, bf16, true);
  const float* from = data<float>(d_out, "d_out");
  Tensor dx = torch::stable::empty_like(x);
  Tensor d_weights = torch::stable::new_empty(x, {in.weights.size});
  Tensor d_bias = bias ? torch::stable::empty_like(*bias) : torch::stable::new_empty(x, {0});
  float *to = data<float>(dx, "dx"), *gradient = data<float>(d_weights, "d_weights");
  float* to_bias = bias ? data<float>(d_bias, "d_bias") : nullptr;
  auto run = JETKERN_SELECT(attention_block_backward);
  auto slots = JETKERN_SELECT(attention_block_slots);
  const auto cost = [&](int64_t t) {
    int64_t all = 1;
    for (int64_t b = in.tiles[t]; b < in.tiles[t + 1]; b++) all += slots(in.segments, b);
    return static_cast<double>(all);
  };
  const auto alphas = sum_gradients(
      in.number_of_tiles(), cost, JETKERN_SELECT(attention_block_gradient)(in.shape),
      in.scratch(true), gradient, [&](int64_t t, const Gradient& sum, float* scratch) {
        run(in.shape, in.weights.data, in.panels.floats(), in.segments, in.tiles[t],
            in.tiles[t + 1], in.x, in.bias, from, to, to_bias, sum, scratch);
      });
  JETKERN_SELECT(attention_block_unfold)(in.shape, in.weights.data, alphas.data(), gradient);
  return {dx, d_weights, d_bias};
}

}  // namespace
}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("cpu_attention_block", TORCH_BOX(&jetkern::attention_block));
  m.impl("cpu_attention_block_backward", TORCH_BOX(&jetkern::attention_block_backward));
}
