// The perceptron and the transformer block on tiles of tokens in lanes (lanes.h). Attention itself
// lies between `before_attention` and `after_attention`: what its tokens are is up to the caller.
//
// The gamma of a DynamicTanh is folded into the columns of the weight that follows. Backward then
// gives the gradient G of the folded weight, and `unfold` turns it into G diag(gamma) for the
// weight and sum_o G(o, i) w(o, i) for gamma.
#pragma once

#include "lanes.h"
#include "../shapes.h"
#include "../turns.h"

namespace jetkern::JETKERN_ISA {

// Hands out parts of one buffer; without one it only counts.
struct Arena {
  float* base;
  int64_t used = 0;

  float* take(int64_t floats) {
    const int64_t at = used;
    used += round_up(floats, 16);
    return base ? base + at : nullptr;
  }
};

// A bias or gamma: its values (null where there is none), its place in the flat gradient and
// its turn there (turns.h).
struct Part {
  const float* data;
  int64_t at, turn;
};

// The alpha of a norm; its gradient is summed apart, as the `sum`th double.
struct Alpha {
  Part part;
  int64_t sum;
  float value() const { return part.data ? *part.data : 0.0f; }
};

// A matrix with its panels for both directions; its gradient takes a turn for every `turn_rows` rows.
struct Weight {
  Part part, gamma;  // gamma: the folded one, if any
  int64_t turn_rows;
  Panels forward, backward;
};

struct Mlp {
  MlpShape shape;
  Part bias1, bias2;
  Alpha alpha;
  Weight fc1, fc2;
  float* room;  // for products
};

struct Block {
  BlockShape shape;
  Alpha alpha1, alpha2;
  Weight qkv, out;
  Mlp mlp;
  float* room;
};

// What is laid out, weight after weight: their values, in the order of jetkern/ops/parameters.py, and
// the panels of those matrices that are packed beforehand. Without `weights` it only counts.
struct Layout {
  const float* const* weights;
  Arena panels;
  bool pack;      // write the panels; else they are there already
  bool backward;  // also those of the transposed matrices
  float* room;
  GradientSize gradient{};  // so far

  Part take(int64_t size, int64_t number_of_turns = 1) {
    const Part part{weights ? *weights++ : nullptr, gradient.floats, gradient.turns};
    gradient.floats += size;
    gradient.turns += number_of_turns;
    return part;
  }
  Alpha take_alpha() { return {take(1), gradient.alphas++}; }
};

Mlp make_mlp(const MlpShape& shape, const Part& gamma, Layout& layout);
Block make_block(const BlockShape& shape, Layout& layout);

// Floats of room that the products of a perceptron, or of a block, need for so many slots.
int64_t room_size(const MlpShape& shape, int64_t slots);
int64_t room_size(const BlockShape& shape, int64_t slots);

// Turns the gradients of folded weights into those of weights and gammas, in place, and puts the
// gradients of the alphas into their places.
void unfold(const Mlp& mlp, const double* alphas, float* gradient);
void unfold(const Block& block, const double* alphas, float* gradient);

// Slots to take through a chain of layers at a time: few, so that they stay in the first-level
// cache, or all, where the weights do not fit the second-level cache.
int64_t chain(const MlpShape& shape, int64_t slots);

// What the backward of a perceptron needs, (slots, hidden) each: the hidden vector before and after
// the norm, and the slope of the GELU. Without a norm `normed` is `gelu`.
struct MlpTile {
  float *normed, *gelu, *slope;
};
MlpTile take_mlp_tile(const MlpShape& shape, int64_t slots, Arena& arena);

// A block's insides for a tile of slots: (slots, width) each, qkv (slots, 3 width).
struct BlockTile {
  float *in, *normed1, *qkv, *mixed, *middle, *normed2;
  MlpTile mlp;
};
BlockTile take_block_tile(const BlockShape& shape, int64_t slots, Arena& arena);

// to = tanh(alpha x), (slots, n) both.
void norm(const float* x, float alpha, int64_t n, int64_t slots, float* to);
// dx += dy (1 - y^2) alpha for y = tanh(alpha x). Returns the gradient of alpha.
double norm_backward(const float* x, const float* y, const float* dy, float alpha, int64_t n,
                     int64_t slots, float* dx);

// The hidden vectors of x; `keep` for backward also stores gelu and slope.
void mlp_hidden(const Mlp& mlp, const float* x, int64_t slots, const MlpTile& tile, bool keep);
// y = fc2(hidden) + add, add null or (slots, out), possibly y.
void mlp_out(const Mlp& mlp, const MlpTile& tile, int64_t slots, float* y, const float* add);

// From d_normed, the gradient of tile.normed with slots d_row vectors apart (0: one for all), times
// weight[slot] where given: the gradient before the GELU replaces tile.slope, dx (may be
// null) is the gradient of x. Returns the gradient of alpha.
double mlp_hidden_backward(const Mlp& mlp, const MlpTile& tile, const float* d_normed,
                           int64_t d_row, const float* weight, int64_t slots, float* dx);
// All of the backward from dy: gradient (flat, folded) is added to, dx may be null. `scratch` holds
// tile_size(slots, hidden) floats.
void mlp_backward(const Mlp& mlp, const MlpTile& tile, const float* x, const float* dy,
                  int64_t slots, float* dx, const Gradient& gradient, float* scratch);
// The weight's gradient, y being the gradient of its product with x.
void weight_backward(const Weight& weight, const float* dy, const float* x, int64_t slots,
                     const Gradient& gradient, float* room);
void add_alpha(const Alpha& alpha, double value, const Gradient& gradient);
void bias_backward(const Part& bias, const float* dy, int64_t outputs, int64_t slots,
                   const Gradient& gradient);
// The part of it that belongs to fc1, after mlp_hidden_backward.
void fc1_backward(const Mlp& mlp, const MlpTile& tile, const float* x, int64_t slots,
                  const Gradient& gradient);

// tile.in -> normed1, qkv.
void before_attention(const Block& block, const BlockTile& tile, int64_t slots);
// tile.mixed, tile.in -> middle, normed2 and the hidden vectors; y = the result unless null.
void after_attention(const Block& block, const BlockTile& tile, int64_t slots, bool keep, float* y);

// dx: gradient of the block's result on entry, of tile.middle on return. `scratch` holds
// tile_size(slots, hidden) + tile_size(slots, width) floats.
void after_attention_backward(const Block& block, const BlockTile& tile, int64_t slots, float* dx,
                              const Gradient& gradient, float* scratch);
// d_mixed = the gradient of tile.mixed from dx, that of tile.middle.
void out_backward(const Block& block, const BlockTile& tile, int64_t slots, const float* dx,
                  float* d_mixed, const Gradient& gradient);
// dx: gradient of tile.middle on entry, of tile.in on return, given d_qkv. `scratch` holds
// tile_size(slots, width) floats.
void before_attention_backward(const Block& block, const BlockTile& tile, int64_t slots,
                               const float* d_qkv, float* dx, const Gradient& gradient,
                               float* scratch);

}  // namespace jetkern::JETKERN_ISA
