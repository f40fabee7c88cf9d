#include "gradients.h"
#include "select.h"
#include "shapes.h"

JETKERN_KERNEL(int64_t, mlp_panels, (const MlpShape&));
JETKERN_KERNEL(void, mlp_pack, (const MlpShape&, const float* weights, float* panels));
JETKERN_KERNEL(int64_t, mlp_tile, ());
JETKERN_KERNEL(int64_t, mlp_scratch, (const MlpShape&));
JETKERN_KERNEL(void, mlp_forward,
               (const MlpShape&, const float* weights, float* panels, const float* x,
                int64_t first, int64_t last, float* out, float* scratch));
JETKERN_KERNEL(void, mlp_backward,
               (const MlpShape&, const float* weights, float* panels, const float* x,
                const float* d_out, int64_t first, int64_t last, float* dx, float* gradient,
                float* scratch));
JETKERN_KERNEL(void, mlp_unfold, (const MlpShape&, const float* weights, float* gradient));

namespace jetkern {
namespace {

// What forward and backward share: checked inputs and packed weights.
struct Inputs {
  MlpShape shape;
  const float *x, *weights;
  int64_t rows, tile;
  Scratch panels;

  Inputs(const Tensor& input, const Tensor& flat, int64_t hidden, int64_t out, int64_t parts)
      : shape(mlp_shape(input.size(1), hidden, out, parts)),
        x(data<float>(input, "x")),
        weights(data<float>(flat, "weights")),
        rows(input.size(0)),
        tile(JETKERN_SELECT(mlp_tile)()),
        panels(JETKERN_SELECT(mlp_panels)(shape) * int64_t{sizeof(float)}) {
    if (flat.numel() != number_of_weights(shape))
      throw std::runtime_error("weights have the wrong size");
    JETKERN_SELECT(mlp_pack)(shape, weights, panels.floats());
  }
};

Tensor mlp(const Tensor& x, const Tensor& weights, int64_t hidden, int64_t out, int64_t parts) {
  const Inputs in(x, weights, hidden, out, parts);
  Tensor result = torch::stable::new_empty(x, {in.rows, out});
  float* to = data<float>(result, "result");
  auto run = JETKERN_SELECT(mlp_forward);
  parallel((in.rows + in.tile - 1) / in.tile, JETKERN_SELECT(mlp_scratch)(in.shape),
           [&](int64_t c, float* scratch) {
             const int64_t last = (c + 1) * in.tile < in.rows ? (c + 1) * in.tile : in.rows;
             run(in.shape, in.weights, in.panels.floats(), in.x, c * in.tile, last, to, scratch);
           });
  return result;
}

// Gradients of x (empty unless wanted) and of the weights.
std::tuple<Tensor, Tensor> mlp_backward(const Tensor& d_out, const Tensor& x,
                                        const Tensor& weights, int64_t hidden, int64_t out,
                                        int64_t parts, bool need_dx) {
  const Inputs in(x, weights, hidden, out, parts);
  const int64_t size = number_of_weights(in.shape);
  const float* from = data<float>(d_out, "d_out");
  Tensor dx = torch::stable::new_empty(x, {need_dx ? in.rows : 0, in.shape.in});
  Tensor d_weights = torch::stable::new_empty(weights, {size});
  float* to = need_dx ? data<float>(dx, "dx") : nullptr;
  float* gradient = data<float>(d_weights, "d_weights");
  auto run = JETKERN_SELECT(mlp_backward);
  const auto bounds =
      split((in.rows + in.tile - 1) / in.tile, partial_sums(size), [](int64_t) { return 1.0; });
  sum_gradients(static_cast<int64_t>(bounds.size()) - 1, size,
                JETKERN_SELECT(mlp_scratch)(in.shape), gradient,
                [&](int64_t c, float* partial, float* scratch) {
                  for (int64_t t = bounds[c]; t < bounds[c + 1]; t++) {
                    const int64_t last =
                        (t + 1) * in.tile < in.rows ? (t + 1) * in.tile : in.rows;
                    run(in.shape, in.weights, in.panels.floats(), in.x, from, t * in.tile, last,
                        to, partial, scratch);
                  }
                });
  JETKERN_SELECT(mlp_unfold)(in.shape, in.weights, gradient);
  return {dx, d_weights};
}

}  // namespace
}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("mlp", TORCH_BOX(&jetkern::mlp));
  m.impl("mlp_backward", TORCH_BOX(&jetkern::mlp_backward));
}
