#include "gradients.h"
#include "select.h"
#include "shapes.h"

JETKERN_KERNEL(int64_t, local_block_panels, (const LocalShape&));
JETKERN_KERNEL(void, local_block_pack, (const LocalShape&, const float* weights, float* panels));
JETKERN_KERNEL(int64_t, local_block_tile, (const LocalShape&));
JETKERN_KERNEL(int64_t, local_block_scratch, (const LocalShape&, bool backward));
JETKERN_KERNEL(bool, local_block_forward,
               (const LocalShape&, const float* weights, float* panels, const float* particles,
                const int64_t* neighbours, int64_t first, int64_t last, float* out,
                float* scratch));
JETKERN_KERNEL(bool, local_block_backward,
               (const LocalShape&, const float* weights, float* panels, const float* particles,
                const int64_t* neighbours, const float* d_out, int64_t first, int64_t last,
                float* gradient, float* scratch));
JETKERN_KERNEL(void, local_block_unfold,
               (const LocalShape&, const float* weights, float* gradient));

namespace jetkern {
namespace {

const LocalShape& checked(const LocalShape& shape) {
  if (shape.blocks < 1 || shape.blocks > LocalShape::MOST_BLOCKS)
    throw std::runtime_error("local_block runs 1 to 32 blocks");
  return shape;
}

// What forward and backward share: checked inputs and packed weights.
struct Inputs {
  LocalShape shape;
  const float *particles, *weights;
  const int64_t* neighbours;
  Scratch panels;

  Inputs(const Tensor& particle_rows, const Tensor& neighbour_rows, const Tensor& flat,
         int64_t width, int64_t heads, int64_t blocks, int64_t embed_hidden, int64_t embed_parts,
         int64_t hidden, int64_t parts)
      : shape(checked({neighbour_rows.size(0), neighbour_rows.size(1), blocks,
                       mlp_shape(7, embed_hidden, width, embed_parts),
                       {width, heads, mlp_shape(width, hidden, width, parts)}})),
        particles(data<float>(particle_rows, "particles")),
        weights(data<float>(flat, "weights")),
        neighbours(data<int64_t>(neighbour_rows, "neighbours")),
        panels(JETKERN_SELECT(local_block_panels)(shape) * int64_t{sizeof(float)}) {
    if (flat.numel() != number_of_weights(shape))
      throw std::runtime_error("weights have the wrong size");
    JETKERN_SELECT(local_block_pack)(shape, weights, panels.floats());
  }
};

void check(bool inside) {
  if (!inside) throw std::runtime_error("neighbours has a row beyond the last particle");
}

Tensor local_block(const Tensor& particles, const Tensor& neighbours, const Tensor& weights,
                   int64_t width, int64_t heads, int64_t blocks, int64_t embed_hidden,
                   int64_t embed_parts, int64_t hidden, int64_t parts) {
  const Inputs in(particles, neighbours, weights, width, heads, blocks, embed_hidden, embed_parts,
                  hidden, parts);
  const int64_t total = in.shape.particles, tile = JETKERN_SELECT(local_block_tile)(in.shape);
  Tensor out = torch::stable::new_empty(particles, {total, width});
  float* to = data<float>(out, "out");
  auto run = JETKERN_SELECT(local_block_forward);
  parallel((total + tile - 1) / tile, JETKERN_SELECT(local_block_scratch)(in.shape, false),
           [&](int64_t c, float* scratch) {
             const int64_t last = (c + 1) * tile < total ? (c + 1) * tile : total;
             check(run(in.shape, in.weights, in.panels.floats(), in.particles, in.neighbours,
                       c * tile, last, to, scratch));
           });
  return out;
}

Tensor local_block_backward(const Tensor& d_out, const Tensor& particles, const Tensor& neighbours,
                            const Tensor& weights, int64_t width, int64_t heads, int64_t blocks,
                            int64_t embed_hidden, int64_t embed_parts, int64_t hidden,
                            int64_t parts) {
  const Inputs in(particles, neighbours, weights, width, heads, blocks, embed_hidden, embed_parts,
                  hidden, parts);
  const int64_t total = in.shape.particles, tile = JETKERN_SELECT(local_block_tile)(in.shape);
  const int64_t size = number_of_weights(in.shape);
  const float* from = data<float>(d_out, "d_out");
  Tensor out = torch::stable::new_empty(weights, {size});
  float* gradient = data<float>(out, "gradient");
  auto run = JETKERN_SELECT(local_block_backward);
  const auto bounds =
      split((total + tile - 1) / tile, partial_sums(size), [](int64_t) { return 1.0; });
  sum_gradients(static_cast<int64_t>(bounds.size()) - 1, size,
                JETKERN_SELECT(local_block_scratch)(in.shape, true), gradient,
                [&](int64_t c, float* partial, float* scratch) {
                  for (int64_t t = bounds[c]; t < bounds[c + 1]; t++) {
                    const int64_t last = (t + 1) * tile < total ? (t + 1) * tile : total;
                    check(run(in.shape, in.weights, in.panels.floats(), in.particles,
                              in.neighbours, from, t * tile, last, partial, scratch));
                  }
                });
  JETKERN_SELECT(local_block_unfold)(in.shape, in.weights, gradient);
  return out;
}

}  // namespace
}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("local_block", TORCH_BOX(&jetkern::local_block));
  m.impl("local_block_backward", TORCH_BOX(&jetkern::local_block_backward));
}
