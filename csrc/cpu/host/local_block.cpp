#include "gradients.h"
#include "../select.h"
#include "weights.h"

JETKERN_KERNEL(int64_t, local_block_panels, (const LocalShape&, bool backward));
JETKERN_KERNEL(void, local_block_pack,
               (const LocalShape&, const float* const* weights, bool backward, float* panels));
JETKERN_KERNEL(GradientSize, local_block_gradient, (const LocalShape&));
JETKERN_KERNEL(int64_t, local_block_tile, (const LocalShape&));
JETKERN_KERNEL(int64_t, local_block_scratch, (const LocalShape&, bool backward));
JETKERN_KERNEL(bool, local_block_forward,
               (const LocalShape&, const float* const* weights, float* panels,
                const float* particles, const int64_t* neighbours, int64_t first, int64_t last,
                float* out, float* scratch));
JETKERN_KERNEL(bool, local_block_backward,
               (const LocalShape&, const float* const* weights, float* panels,
                const float* particles, const int64_t* neighbours, const float* d_out,
                int64_t first, int64_t last, const Gradient&, float* d_particles, float* d_edges,
                float* scratch));
JETKERN_KERNEL(void, local_block_unfold,
               (const LocalShape&, const float* const* weights, const double* alphas,
                float* gradient));

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
  Weights weights;
  const float* particles;
  const int64_t* neighbours;
  int64_t total, tile, tiles;
  Scratch panels;

  Inputs(const Tensor& particle_rows, const Tensor& neighbour_rows, const Tensor& table,
         int64_t width, int64_t heads, int64_t blocks, int64_t embed_hidden, int64_t embed_parts,
         int64_t hidden, int64_t parts, bool bf16, bool backward)
      : shape(checked({neighbour_rows.size(0), neighbour_rows.size(1), blocks,
                       mlp_shape(7, embed_hidden, width, embed_parts, bf16),
                       {width, heads, mlp_shape(width, hidden, width, parts, bf16)}})),
        weights(table, shape),
        particles(data<float>(particle_rows, "particles")),
        neighbours(data<int64_t>(neighbour_rows, "neighbours")),
        total(shape.particles),
        tile(JETKERN_SELECT(local_block_tile)(shape)),
        tiles((total + tile - 1) / tile),
        panels(JETKERN_SELECT(local_block_panels)(shape, backward) * int64_t{sizeof(float)}) {
    JETKERN_SELECT(local_block_pack)(shape, weights.data, backward, panels.floats());
  }
  int64_t last(int64_t t) const { return (t + 1) * tile < total ? (t + 1) * tile : total; }
};

void check(bool inside) {
  if (!inside) throw std::runtime_error("neighbours has a row beyond the last particle");
}

Tensor local_block(const Tensor& particles, const Tensor& neighbours, const Tensor& weights,
                   int64_t width, int64_t heads, int64_t blocks, int64_t embed_hidden,
                   int64_t embed_parts, int64_t hidden, int64_t parts, bool bf16) {
  const Inputs in(particles, neighbours, weights, width, heads, blocks, embed_hidden, embed_parts,
                  hidden, parts, bf16, false);
  Tensor out = torch::stable::new_empty(particles, {in.total, width});
  float* to = data<float>(out, "out");
  auto run = JETKERN_SELECT(local_block_forward);
  parallel(in.tiles, JETKERN_SELECT(local_block_scratch)(in.shape, false),
           [&](int64_t t, float* scratch) {
             check(run(in.shape, in.weights.data, in.panels.floats(), in.particles, in.neighbours,
                       t * in.tile, in.last(t), to, scratch));
           });
  return out;
}

// Gradients of the particles (empty unless wanted) and of the weights, one after the other.
std::tuple<Tensor, Tensor> local_block_backward(const Tensor& d_out, const Tensor& particles,
                                                const Tensor& neighbours, const Tensor& weights,
                                                int64_t width, int64_t heads, int64_t blocks,
                                                int64_t embed_hidden, int64_t embed_parts,
                                                int64_t hidden, int64_t parts, bool bf16,
                                                bool want_particles) {
  const Inputs in(particles, neighbours, weights, width, heads, blocks, embed_hidden, embed_parts,
                  hidden, parts, bf16, true);
  const float* from = data<float>(d_out, "d_out");
  const int64_t K = in.shape.neighbours, rows = want_particles ? in.total : 0;
  Tensor d_weights = torch::stable::new_empty(particles, {in.weights.size});
  Tensor d_particles = want_particles ? torch::stable::empty_like(particles)
                                      : torch::stable::new_empty(particles, {0});
  float* gradient = data<float>(d_weights, "d_weights");
  float* centres = want_particles ? data<float>(d_particles, "d_particles") : nullptr;
  Scratch edges(rows * K * 4 * int64_t{sizeof(float)});
  auto run = JETKERN_SELECT(local_block_backward);
  const auto alphas = sum_gradients(
      in.tiles, [](int64_t) { return 1.0; }, JETKERN_SELECT(local_block_gradient)(in.shape),
      JETKERN_SELECT(local_block_scratch)(in.shape, true), gradient,
      [&](int64_t t, const Gradient& sum, float* scratch) {
        check(run(in.shape, in.weights.data, in.panels.floats(), in.particles, in.neighbours, from,
                  t * in.tile, in.last(t), sum, centres, edges.floats(), scratch));
      });
  JETKERN_SELECT(local_block_unfold)(in.shape, in.weights.data, alphas.data(), gradient);
  // Particles as neighbours: edge after edge, so that the sums do not depend on the threads.
  for (int64_t i = 0; i < rows; i++)
    for (int64_t k = 0, edge = i * K; k < K; k++) {
      const int64_t j = in.neighbours[i * K + k];
      if (j < 0) continue;
      for (int64_t c = 0; c < 4; c++) centres[j * 4 + c] += edges.floats()[edge * 4 + c];
      edge++;
    }
  return {d_particles, d_weights};
}

}  // namespace
}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("cpu_local_block", TORCH_BOX(&jetkern::local_block));
  m.impl("cpu_local_block_backward", TORCH_BOX(&jetkern::local_block_backward));
}
