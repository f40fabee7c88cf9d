#include "transformer.h"

namespace jetkern::JETKERN_ISA {
namespace {

constexpr int64_t TILE = 6;  // slots

struct Workspace {
  MlpTile tile;
  float *in, *out, *d_in, *scratch, *room;
};

void make_workspace(const MlpShape& shape, Workspace& work, Arena& arena) {
  work.tile = take_mlp_tile(shape, TILE, arena);
  work.in = arena.take(tile_size(TILE, shape.in));
  work.out = arena.take(tile_size(TILE, shape.out));
  work.d_in = arena.take(tile_size(TILE, shape.in));
  work.scratch = arena.take(tile_size(TILE, shape.hidden));
  work.room = arena.take(room_size(shape, TILE));
}

int64_t load_tile(const float* x, int64_t n, int64_t first, int64_t last, float* to) {
  int64_t slots = 0;
  for (int64_t r = first; r < last; r += W, slots++)
    rows_to_slot(x + r * n, n, n, last - r < W ? last - r : W, to + slots * slot_row(n) * W);
  return slots;
}

void store_tile(const float* from, int64_t n, int64_t first, int64_t last, float* x) {
  for (int64_t r = first; r < last; r += W, from += slot_row(n) * W)
    slot_to_rows(from, n, last - r < W ? last - r : W, x + r * n, n);
}

}  // namespace

int64_t mlp_panels(const MlpShape& shape, bool backward) {
  Layout layout{nullptr, {nullptr}, false, backward, nullptr};
  make_mlp(shape, {}, layout);
  return layout.panels.used;
}

GradientSize mlp_gradient(const MlpShape& shape) {
  Layout layout{nullptr, {nullptr}, false, false, nullptr};
  make_mlp(shape, {}, layout);
  return layout.gradient;
}

void mlp_pack(const MlpShape& shape, const float* const* weights, bool backward, float* panels) {
  Layout layout{weights, {panels}, true, backward, nullptr};
  make_mlp(shape, {}, layout);
}

int64_t mlp_tile() { return TILE * W; }

int64_t mlp_scratch(const MlpShape& shape) {
  Workspace work;
  Arena arena{nullptr};
  make_workspace(shape, work, arena);
  return arena.used;
}

// Rows first .. last, at most mlp_tile() of them.
void mlp_forward(const MlpShape& shape, const float* const* weights, float* panels, const float* x,
                 int64_t first, int64_t last, float* out, float* scratch) {
  Workspace work;
  Arena arena{scratch};
  make_workspace(shape, work, arena);
  Layout layout{weights, {panels}, false, false, work.room};
  const Mlp mlp = make_mlp(shape, {}, layout);
  const int64_t slots = load_tile(x, shape.in, first, last, work.in);
  mlp_hidden(mlp, work.in, slots, work.tile, false);
  mlp_out(mlp, work.tile, slots, work.out, nullptr);
  store_tile(work.out, shape.out, first, last, out);
}

// Writes the rows of dx (unless null) and adds to the gradient of the folded weights.
void mlp_backward(const MlpShape& shape, const float* const* weights, float* panels, const float* x,
                  const float* d_out, int64_t first, int64_t last, float* dx,
                  const Gradient& gradient, float* scratch) {
  Workspace work;
  Arena arena{scratch};
  make_workspace(shape, work, arena);
  Layout layout{weights, {panels}, false, true, work.room};
  const Mlp mlp = make_mlp(shape, {}, layout);
  const int64_t slots = load_tile(x, shape.in, first, last, work.in);
  mlp_hidden(mlp, work.in, slots, work.tile, true);
  load_tile(d_out, shape.out, first, last, work.out);
  mlp_backward(mlp, work.tile, work.in, work.out, slots, dx ? work.d_in : nullptr, gradient,
               work.scratch);
  if (dx) store_tile(work.d_in, shape.in, first, last, dx);
}

void mlp_unfold(const MlpShape& shape, const float* const* weights, const double* alphas,
                float* gradient) {
  Layout layout{weights, {nullptr}, false, false, nullptr};
  unfold(make_mlp(shape, {}, layout), alphas, gradient);
}

}  // namespace jetkern::JETKERN_ISA
