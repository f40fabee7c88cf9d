#include "transformer.h"

#include "math.h"
#include "tiles.h"

namespace jetkern::JETKERN_ISA {
namespace {

constexpr int64_t LARGE = 1 << 18;     // elements from which a matrix is packed while it is used
constexpr int64_t PER_TURN = 1 << 15;  // elements of a gradient that are added to in one turn
constexpr int64_t NARROW = 16;         // with fewer inputs bfloat16 would cost accuracy for nothing

JETKERN_INLINE int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

bool is_bf16(bool wanted, int64_t inputs) { return wanted && inputs >= NARROW; }
// Products in tiles are so fast that packing again for each tile of tokens would take as long.
bool is_packed(int64_t outputs, int64_t inputs, bool bf16) {
  return outputs * inputs < (TILES && bf16 ? 8 * LARGE : LARGE);
}

void place(Panels& panels, Layout& layout) {
  float* to = layout.panels.take(panels_size(panels.outputs, panels.inputs, panels.bf16));
  if (layout.pack) pack_panels(panels, to);
  panels.packed = to;
}

Weight make_weight(int64_t outputs, int64_t inputs, bool bf16, const Part& gamma, Layout& layout) {
  Weight weight{};
  weight.turn_rows = (PER_TURN + inputs - 1) / inputs;
  weight.part = layout.take(outputs * inputs, (outputs + weight.turn_rows - 1) / weight.turn_rows);
  weight.gamma = gamma;
  bf16 = is_bf16(bf16, inputs);
  const float* w = weight.part.data;
  weight.forward = {w, nullptr, gamma.data, inputs, 1, outputs, inputs, bf16, nullptr};
  weight.backward = {w, gamma.data, nullptr, 1, inputs, inputs, outputs, bf16, nullptr};
  if (!is_packed(outputs, inputs, bf16)) return weight;
  place(weight.forward, layout);
  if (layout.backward) place(weight.backward, layout);
  return weight;
}

int64_t weight_room(int64_t outputs, int64_t inputs, int64_t slots, bool bf16) {
  bf16 = is_bf16(bf16, inputs);
  const bool packed = is_packed(outputs, inputs, bf16);
  const int64_t forward = product_room(outputs, inputs, slots, bf16, packed);
  const int64_t backward = product_room(inputs, outputs, slots, bf16, packed);
  return forward > backward ? forward : backward;
}

void unfold(const Weight& weight, float* gradient) {
  if (!weight.gamma.data) return;
  const int64_t outputs = weight.forward.outputs, inputs = weight.forward.inputs;
  const float *w = weight.part.data, *gamma = weight.gamma.data;
  float *dw = gradient + weight.part.at, *d_gamma = gradient + weight.gamma.at;
  constexpr int64_t COLUMNS = 64;
  for (int64_t first = 0; first < inputs; first += COLUMNS) {
    const int64_t n = at_most(inputs - first, COLUMNS);
    double sums[COLUMNS] = {};
    for (int64_t at = first; at < outputs * inputs; at += inputs)
      for (int64_t i = 0; i < n; i++) {
        sums[i] += static_cast<double>(dw[at + i]) * w[at + i];
        dw[at + i] *= gamma[first + i];
      }
    for (int64_t i = 0; i < n; i++) d_gamma[first + i] = static_cast<float>(sums[i]);
  }
}

void unfold(const Alpha& alpha, const double* alphas, float* gradient) {
  gradient[alpha.part.at] = static_cast<float>(alphas[alpha.sum]);
}

constexpr int64_t FEW_WEIGHTS = 1 << 15;  // of a perceptron: several layers fit the L2 cache

}  // namespace

int64_t chain(const MlpShape& shape, int64_t slots) {
  const int64_t few = slots < SLOTS ? slots : SLOTS;
  return shape.hidden * (shape.in + shape.out) > FEW_WEIGHTS ? slots : few;
}

Mlp make_mlp(const MlpShape& shape, const Part& gamma, Layout& layout) {
  Mlp mlp{};
  Part own{};
  mlp.shape = shape;
  mlp.room = layout.room;
  mlp.fc1 = make_weight(shape.hidden, shape.in, shape.bf16, gamma, layout);
  if (shape.bias1) mlp.bias1 = layout.take(shape.hidden);
  if (shape.norm) mlp.alpha = layout.take_alpha();
  if (shape.norm) own = layout.take(shape.hidden);
  mlp.fc2 = make_weight(shape.out, shape.hidden, shape.bf16, own, layout);
  if (shape.bias2) mlp.bias2 = layout.take(shape.out);
  return mlp;
}

Block make_block(const BlockShape& shape, Layout& layout) {
  const int64_t width = shape.width;
  const bool bf16 = shape.mlp.bf16;
  Block block{};
  block.shape = shape;
  block.room = layout.room;
  block.alpha1 = layout.take_alpha();
  const Part gamma1 = layout.take(width);
  block.qkv = make_weight(3 * width, width, bf16, gamma1, layout);
  block.out = make_weight(width, width, bf16, {}, layout);
  block.alpha2 = layout.take_alpha();
  const Part gamma2 = layout.take(width);
  block.mlp = make_mlp(shape.mlp, gamma2, layout);
  return block;
}

int64_t room_size(const MlpShape& shape, int64_t slots) {
  const int64_t fc1 = weight_room(shape.hidden, shape.in, slots, shape.bf16);
  const int64_t fc2 = weight_room(shape.out, shape.hidden, slots, shape.bf16);
  return fc1 > fc2 ? fc1 : fc2;
}

int64_t room_size(const BlockShape& shape, int64_t slots) {
  const int64_t qkv = weight_room(3 * shape.width, shape.width, slots, shape.mlp.bf16);
  const int64_t mlp = room_size(shape.mlp, slots);
  return qkv > mlp ? qkv : mlp;  // the weight after the attention is smaller than qkv
}

void unfold(const Mlp& mlp, const double* alphas, float* gradient) {
  unfold(mlp.fc1, gradient);
  unfold(mlp.fc2, gradient);
  if (mlp.shape.norm) unfold(mlp.alpha, alphas, gradient);
}

void unfold(const Block& block, const double* alphas, float* gradient) {
  unfold(block.qkv, gradient);
  unfold(block.alpha1, alphas, gradient);
  unfold(block.alpha2, alphas, gradient);
  unfold(block.mlp, alphas, gradient);
}

void weight_backward(const Weight& weight, const float* dy, const float* x, int64_t slots,
                     const Gradient& gradient, float* room) {
  const int64_t outputs = weight.forward.outputs, inputs = weight.forward.inputs;
  const Outer factors = outer(dy, slot_row(outputs), outputs, x, slot_row(inputs), inputs, slots,
                              weight.forward.bf16, room);
  const int64_t rows = gradient.turns ? weight.turn_rows : outputs;
  float* to = gradient.to + weight.part.at;
  for (int64_t first = 0, turn = weight.part.turn; first < outputs; first += rows, turn++)
    gradient.in_turn(turn, [&] {
      outer_product(factors, first, at_most(first + rows, outputs), to);
    });
}

void add_alpha(const Alpha& alpha, double value, const Gradient& gradient) {
  gradient.in_turn(alpha.part.turn, [&] { gradient.alphas[alpha.sum] += value; });
}

void bias_backward(const Part& bias, const float* dy, int64_t outputs, int64_t slots,
                   const Gradient& gradient) {
  if (!bias.data) return;
  gradient.in_turn(bias.turn, [&] {
    lane_sums(dy, slot_row(outputs), outputs, slots, gradient.to + bias.at);
  });
}

MlpTile take_mlp_tile(const MlpShape& shape, int64_t slots, Arena& arena) {
  const int64_t size = tile_size(slots, shape.hidden);
  MlpTile tile{};
  tile.gelu = arena.take(size);
  tile.slope = arena.take(size);
  tile.normed = shape.norm ? arena.take(size) : tile.gelu;
  return tile;
}

BlockTile take_block_tile(const BlockShape& shape, int64_t slots, Arena& arena) {
  const int64_t size = tile_size(slots, shape.width);
  BlockTile tile{};
  tile.in = arena.take(size);
  tile.normed1 = arena.take(size);
  tile.qkv = arena.take(tile_size(slots, 3 * shape.width) + OVERREAD * W);
  tile.mixed = arena.take(size + OVERREAD * W);
  tile.middle = arena.take(size);
  tile.normed2 = arena.take(size);
  tile.mlp = take_mlp_tile(shape.mlp, slots, arena);
  return tile;
}

void norm(const float* x, float alpha, int64_t n, int64_t slots, float* to) {
  for (int64_t s = 0; s < slots; s++)
    for (int64_t i = s * slot_row(n); i < s * slot_row(n) + n; i++)
      store(to + i * W, tanh(load(x + i * W) * alpha));
}

double norm_backward(const float* x, const float* y, const float* dy, float alpha, int64_t n,
                     int64_t slots, float* dx) {
  vdouble d_alpha{};
  for (int64_t s = 0; s < slots; s++) {
    vfloat totals[4] = {};
    const int64_t at = s * slot_row(n) * W;
    const auto feature = [&](int64_t i, vfloat& total) {
      const vfloat value = load(y + i);
      const vfloat slope = load(dy + i) * (1.0f - value * value);
      total += slope * load(x + i);
      store(dx + i, load(dx + i) + slope * alpha);
    };
    int64_t i = at;
    for (; i + 4 * W <= at + n * W; i += 4 * W)
#pragma GCC unroll 4
      for (int64_t u = 0; u < 4; u++) feature(i + u * W, totals[u]);
    for (; i < at + n * W; i += W) feature(i, totals[0]);
    d_alpha += to_double((totals[0] + totals[1]) + (totals[2] + totals[3]));
  }
  return sum(d_alpha);
}

void mlp_hidden(const Mlp& mlp, const float* x, int64_t slots, const MlpTile& tile, bool keep) {
  const int64_t n = mlp.shape.hidden, row = slot_row(n), x_row = slot_row(mlp.shape.in);
  const float alpha = mlp.alpha.value();
  const int64_t step = chain(mlp.shape, slots);
  for (int64_t s = 0; s < slots; s += step) {
    const int64_t count = at_most(slots - s, step), at = s * row * W;
    product(mlp.fc1.forward, x + s * x_row * W, x_row, tile.gelu + at, row, count,
            mlp.bias1.data, nullptr, mlp.room);
    for (int64_t c = 0; c < count; c++) {
      float* value = tile.gelu + at + c * row * W;
      float* slope = tile.slope + at + c * row * W;
      float* normed = tile.normed + at + c * row * W;
      if (keep) {
        for (int64_t i = 0; i < n * W; i += W) {
          vfloat derivative;
          const vfloat g = gelu(load(value + i), derivative);
          store(value + i, g);
          store(slope + i, derivative);
        }
        if (mlp.shape.norm)
          for (int64_t i = 0; i < n * W; i += W)
            store(normed + i, tanh(load(value + i) * alpha));
      } else {
        for (int64_t i = 0; i < n * W; i += W) {
          const vfloat g = gelu(load(value + i));
          store(normed + i, mlp.shape.norm ? tanh(g * alpha) : g);
        }
      }
    }
  }
}

void mlp_out(const Mlp& mlp, const MlpTile& tile, int64_t slots, float* y, const float* add) {
  product(mlp.fc2.forward, tile.normed, slot_row(mlp.shape.hidden), y, slot_row(mlp.shape.out),
          slots, mlp.bias2.data, add, mlp.room);
}

double mlp_hidden_backward(const Mlp& mlp, const MlpTile& tile, const float* d_normed,
                           int64_t d_row, const float* weight, int64_t slots, float* dx) {
  const int64_t n = mlp.shape.hidden, row = slot_row(n);
  const float alpha = mlp.alpha.value();
  vdouble d_alpha{};
  for (int64_t s = 0; s < slots; s++) {
    const vfloat factor = weight ? load(weight + s * W) : splat(1.0f);
    const float *d = d_normed + s * d_row * W, *g = tile.gelu + s * row * W;
    const float* normed = tile.normed + s * row * W;
    float* slope = tile.slope + s * row * W;
    if (mlp.shape.norm) {
      vfloat totals[4] = {};
      const auto feature = [&](int64_t i, vfloat& total) {
        const vfloat value = load(normed + i);
        const vfloat inner = load(d + i) * factor * (1.0f - value * value);
        total += inner * load(g + i);
        store(slope + i, inner * alpha * load(slope + i));
      };
      int64_t i = 0;
      for (; i + 4 * W <= n * W; i += 4 * W)
#pragma GCC unroll 4
        for (int64_t u = 0; u < 4; u++) feature(i + u * W, totals[u]);
      for (; i < n * W; i += W) feature(i, totals[0]);
      d_alpha += to_double((totals[0] + totals[1]) + (totals[2] + totals[3]));
    } else {
      for (int64_t i = 0; i < n * W; i += W)
        store(slope + i, load(d + i) * factor * load(slope + i));
    }
  }
  if (dx)
    product(mlp.fc1.backward, tile.slope, row, dx, slot_row(mlp.shape.in), slots, nullptr, nullptr,
            mlp.room);
  return sum(d_alpha);
}

void fc1_backward(const Mlp& mlp, const MlpTile& tile, const float* x, int64_t slots,
                  const Gradient& gradient) {
  weight_backward(mlp.fc1, tile.slope, x, slots, gradient, mlp.room);
  bias_backward(mlp.bias1, tile.slope, mlp.shape.hidden, slots, gradient);
}

void mlp_backward(const Mlp& mlp, const MlpTile& tile, const float* x, const float* dy,
                  int64_t slots, float* dx, const Gradient& gradient, float* scratch) {
  const int64_t row = slot_row(mlp.shape.hidden) * W, out = slot_row(mlp.shape.out);
  const int64_t in = slot_row(mlp.shape.in);
  weight_backward(mlp.fc2, dy, tile.normed, slots, gradient, mlp.room);
  bias_backward(mlp.bias2, dy, mlp.shape.out, slots, gradient);
  double d_alpha = 0.0;
  const int64_t step = chain(mlp.shape, slots);
  for (int64_t s = 0; s < slots; s += step) {
    const int64_t count = at_most(slots - s, step);
    product(mlp.fc2.backward, dy + s * out * W, out, scratch, row / W, count, nullptr, nullptr,
            mlp.room);
    const MlpTile part{tile.normed + s * row, tile.gelu + s * row, tile.slope + s * row};
    d_alpha += mlp_hidden_backward(mlp, part, scratch, row / W, nullptr, count,
                                   dx ? dx + s * in * W : nullptr);
  }
  if (mlp.shape.norm) add_alpha(mlp.alpha, d_alpha, gradient);
  fc1_backward(mlp, tile, x, slots, gradient);
}

void before_attention(const Block& block, const BlockTile& tile, int64_t slots) {
  const int64_t width = block.shape.width, row = slot_row(width), row3 = slot_row(3 * width);
  const int64_t step = chain(block.shape.mlp, slots);
  for (int64_t s = 0; s < slots; s += step) {
    const int64_t count = at_most(slots - s, step), at = s * row * W;
    norm(tile.in + at, block.alpha1.value(), width, count, tile.normed1 + at);
    product(block.qkv.forward, tile.normed1 + at, row, tile.qkv + s * row3 * W, row3, count,
            nullptr, nullptr, block.room);
  }
}

void after_attention(const Block& block, const BlockTile& tile, int64_t slots, bool keep,
                     float* y) {
  const int64_t width = block.shape.width, row = slot_row(width);
  const int64_t hidden = slot_row(block.mlp.shape.hidden) * W;
  const int64_t step = chain(block.shape.mlp, slots);
  for (int64_t s = 0; s < slots; s += step) {
    const int64_t count = at_most(slots - s, step), at = s * row * W;
    product(block.out.forward, tile.mixed + at, row, tile.middle + at, row, count, nullptr,
            tile.in + at, block.room);
    norm(tile.middle + at, block.alpha2.value(), width, count, tile.normed2 + at);
    const MlpTile part{tile.mlp.normed + s * hidden, tile.mlp.gelu + s * hidden,
                       tile.mlp.slope + s * hidden};
    mlp_hidden(block.mlp, tile.normed2 + at, count, part, keep);
    if (y) mlp_out(block.mlp, part, count, y + at, tile.middle + at);
  }
}

void after_attention_backward(const Block& block, const BlockTile& tile, int64_t slots, float* dx,
                              const Gradient& gradient, float* scratch) {
  const int64_t width = block.shape.width;
  float* d_normed = scratch + tile_size(slots, block.mlp.shape.hidden);
  mlp_backward(block.mlp, tile.mlp, tile.normed2, dx, slots, d_normed, gradient, scratch);
  const double d_alpha = norm_backward(tile.middle, tile.normed2, d_normed, block.alpha2.value(),
                                      width, slots, dx);
  add_alpha(block.alpha2, d_alpha, gradient);
}

void out_backward(const Block& block, const BlockTile& tile, int64_t slots, const float* dx,
                  float* d_mixed, const Gradient& gradient) {
  const int64_t row = slot_row(block.shape.width);
  weight_backward(block.out, dx, tile.mixed, slots, gradient, block.room);
  product(block.out.backward, dx, row, d_mixed, row, slots, nullptr, nullptr, block.room);
}

void before_attention_backward(const Block& block, const BlockTile& tile, int64_t slots,
                               const float* d_qkv, float* dx, const Gradient& gradient,
                               float* scratch) {
  const int64_t width = block.shape.width, row = slot_row(width), row3 = slot_row(3 * width);
  weight_backward(block.qkv, d_qkv, tile.normed1, slots, gradient, block.room);
  const int64_t step = chain(block.shape.mlp, slots);
  double d_alpha = 0.0;
  for (int64_t s = 0; s < slots; s += step) {
    const int64_t count = at_most(slots - s, step), at = s * row * W;
    product(block.qkv.backward, d_qkv + s * row3 * W, row3, scratch, row, count, nullptr, nullptr,
            block.room);
    d_alpha += norm_backward(tile.in + at, tile.normed1 + at, scratch, block.alpha1.value(), width,
                             count, dx + at);
  }
  add_alpha(block.alpha1, d_alpha, gradient);
}

}  // namespace jetkern::JETKERN_ISA
