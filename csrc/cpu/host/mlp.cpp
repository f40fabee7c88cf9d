#include "gradients.h"
#include "../select.h"
#include "weights.h"

JETKERN_KERNEL(int64_t, mlp_panels, (const MlpShape&, bool backward));
JETKERN_KERNEL(void, mlp_pack,
               (const MlpShape&, const float* const* weights, bool backward, float* panels));
JETKERN_KERNEL(GradientSize, mlp_gradient, (const MlpShape&));
JETKERN_KERNEL(int64_t, mlp_tile, ());
JETKERN_KERNEL(int64_t, mlp_scratch, (const MlpShape&));
JETKERN_KERNEL(void, mlp_forward,
               (const MlpShape&, const float* const* weights, float* panels, const float* x,
                int64_t first, int64_t last, float* out, float* scratch));
JETKERN_KERNEL(void, mlp_backward,
               (const MlpShape&, const float* const* weights, float* panels, const float* x,
                const float* d_out, int64_t first, int64_t last, float* dx, const Gradient&,
                float* scratch));
JETKERN_KERNEL(void, mlp_unfold,
               (const MlpShape&, const float* const* weights, const double* alphas,
                float* gradient));

namespace jetkern {
namespace {

// What forward and backward share: checked inputs and packed weights.
struct Inputs {
  MlpShape shape;
  Weights weights;
  const float* x;
  int64_t rows, tile, tiles;
  Scratch panels;

  Inputs(const Tensor& input, const Tensor& table, int64_t hidden, int64_t out, int64_t parts,
         bool bf16, bool backward)
      : shape(mlp_shape(input.size(1), hidden, out, parts, bf16)),
        weights(table, shape),
        x(data<float>(input, "x")),
        rows(input.size(0)),
        tile(JETKERN_SELECT(mlp_tile)()),
        tiles((rows + tile - 1) / tile),
        panels(JETKERN_SELECT(mlp_panels)(shape, backward) * int64_t{sizeof(float)}) {
    JETKERN_SELECT(mlp_pack)(shape, weights.data, backward, panels.floats());
  }
  int64_t last(int64_t t) const { return (t + 1) * tile < rows ? (t + 1) * tile : rows; }
};

Tensor mlp(const Tensor& x, const Tensor& weights, int64_t hidden, int64_t out, int64_t parts,
           bool bf16) {
  const Inputs in(x, weights, hidden, out, parts, bf16, false);
  Tensor result = torch::stable::new_empty(x, {in.rows, out});
  float* to = data<float>(result, "result");
  auto run = JETKERN_SELECT(mlp_forward);
  parallel(in.tiles, JETKERN_SELECT(mlp_scratch)(in.shape), [&](int64_t t, float* scratch) {
    run(in.shape, in.weights.data, in.panels.floats(), in.x, t * in.tile, in.last(t), to, scratch);
  });
  return result;
}

// Gradients of x (empty unless wanted) and of the weights, one after the other.
std::tuple<Tensor, Tensor> mlp_backward(const Tensor& d_out, const Tensor& x,
                                        const Tensor& weights, int64_t hidden, int64_t out,
                                        int64_t parts, bool bf16, bool want_x) {
  const Inputs in(x, weights, hidden, out, parts, bf16, true);
  const float* from = data<float>(d_out, "d_out");
  Tensor dx = want_x ? torch::stable::empty_like(x) : torch::stable::new_empty(x, {0});
  Tensor d_weights = torch::stable::new_empty(x, {in.weights.size});
  float* to = want_x ? data<float>(dx, "dx") : nullptr;
  float* gradient = data<float>(d_weights, "d_weights");
  auto run = JETKERN_SELECT(mlp_backward);
  const auto alphas = sum_gradients(
      in.tiles, [](int64_t) { return 1.0; }, JETKERN_SELECT(mlp_gradient)(in.shape),
      JETKERN_SELECT(mlp_scratch)(in.shape), gradient,
      [&](int64_t t, const Gradient& sum, float* scratch) {
        run(in.shape, in.weights.data, in.panels.floats(), in.x, from, t * in.tile, in.last(t), to,
            sum, scratch);
      });
  JETKERN_SELECT(mlp_unfold)(in.shape, in.weights.data, alphas.data(), gradient);
  return {dx, d_weights};
}

}  // namespace
}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("cpu_mlp", TORCH_BOX(&jetkern::mlp));
  m.impl("cpu_mlp_backward", TORCH_BOX(&jetkern::mlp_backward));
}
