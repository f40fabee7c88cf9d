#include "../transformer.h"

#include "../math.h"

namespace jetkern::JETKERN_ISA {
namespace {

Weight make_weight(const float* weights, int64_t& at, int64_t outputs, int64_t inputs,
                   int64_t at_gamma, Arena& panels, bool pack) {
  Weight weight{at, at_gamma, {}, {}};
  float* forward = panels.take(panels_size(outputs, inputs));
  float* backward = panels.take(panels_size(inputs, outputs));
  if (pack) {
    const float* w = weights + at;
    const float* gamma = at_gamma < 0 ? nullptr : weights + at_gamma;
    pack_panels(w, inputs, 1, nullptr, gamma, outputs, inputs, forward);
    pack_panels(w, 1, inputs, gamma, nullptr, inputs, outputs, backward);
  }
  weight.forward = {forward, outputs, inputs};
  weight.backward = {backward, inputs, outputs};
  at += outputs * inputs;
  return weight;
}

int64_t skip(int64_t& at, int64_t count) {
  const int64_t here = at;
  at += count;
  return here;
}

void unfold(const Weight& weight, const float* weights, float* gradient) {
  if (weight.at_gamma < 0) return;
  const int64_t outputs = weight.forward.outputs, inputs = weight.forward.inputs;
  const float *w = weights + weight.at, *gamma = weights + weight.at_gamma;
  float *dw = gradient + weight.at, *d_gamma = gradient + weight.at_gamma;
  for (int64_t i = 0; i < inputs; i++) d_gamma[i] = 0.0f;
  for (int64_t o = 0; o < outputs; o++)
    for (int64_t i = 0; i < inputs; i++) {
      d_gamma[i] += dw[o * inputs + i] * w[o * inputs + i];
      dw[o * inputs + i] *= gamma[i];
    }
}

void weight_backward(const Weight& weight, const float* dy, const float* x, int64_t slots,
                     float* gradient) {
  const int64_t outputs = weight.forward.outputs, inputs = weight.forward.inputs;
  outer_product(dy, slot_row(outputs), outputs, x, slot_row(inputs), inputs, slots,
                gradient + weight.at);
}

constexpr int64_t FEW_WEIGHTS = 1 << 15;  // of a perceptron: several layers fit the L2 cache

JETKERN_INLINE int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }

}  // namespace

int64_t chain(const MlpShape& shape, int64_t slots) {
  const int64_t few = slots < SLOTS ? slots : SLOTS;
  return shape.hidden * (shape.in + shape.out) > FEW_WEIGHTS ? slots : few;
}

Mlp make_mlp(const MlpShape& shape, const float* weights, int64_t& at, int64_t at_gamma,
             Arena& panels, bool pack) {
  Mlp mlp{};
  mlp.shape = shape;
  mlp.fc1 = make_weight(weights, at, shape.hidden, shape.in, at_gamma, panels, pack);
  mlp.at_bias1 = shape.bias1 ? skip(at, shape.hidden) : -1;
  mlp.at_alpha = shape.norm ? skip(at, 1) : -1;
  const int64_t at_own_gamma = shape.norm ? skip(at, shape.hidden) : -1;
  mlp.fc2 = make_weight(weights, at, shape.out, shape.hidden, at_own_gamma, panels, pack);
  mlp.at_bias2 = shape.bias2 ? skip(at, shape.out) : -1;
  if (!weights) return mlp;
  mlp.bias1 = shape.bias1 ? weights + mlp.at_bias1 : nullptr;
  mlp.bias2 = shape.bias2 ? weights + mlp.at_bias2 : nullptr;
  mlp.alpha = shape.norm ? weights[mlp.at_alpha] : 0.0f;
  return mlp;
}

Block make_block(const BlockShape& shape, const float* weights, int64_t& at, Arena& panels,
                 bool pack) {
  const int64_t width = shape.width;
  Block block{};
  block.shape = shape;
  block.at_alpha1 = skip(at, 1);
  const int64_t at_gamma1 = skip(at, width);
  block.qkv = make_weight(weights, at, 3 * width, width, at_gamma1, panels, pack);
  block.out = make_weight(weights, at, width, width, -1, panels, pack);
  block.at_alpha2 = skip(at, 1);
  const int64_t at_gamma2 = skip(at, width);
  block.mlp = make_mlp(shape.mlp, weights, at, at_gamma2, panels, pack);
  if (!weights) return block;
  block.alpha1 = weights[block.at_alpha1];
  block.alpha2 = weights[block.at_alpha2];
  return block;
}

void unfold(const Mlp& mlp, const float* weights, float* gradient) {
  unfold(mlp.fc1, weights, gradient);
  unfold(mlp.fc2, weights, gradient);
}

void unfold(const Block& block, const float* weights, float* gradient) {
  unfold(block.qkv, weights, gradient);
  unfold(block.mlp, weights, gradient);
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

void norm_backward(const float* x, const float* y, const float* dy, float alpha, int64_t n,
                   int64_t slots, float* dx, float* d_alpha) {
  vfloat totals[4] = {};
  for (int64_t s = 0; s < slots; s++) {
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
  }
  *d_alpha += sum((totals[0] + totals[1]) + (totals[2] + totals[3]));
}

void mlp_hidden(const Mlp& mlp, const float* x, int64_t slots, const MlpTile& tile, bool keep) {
  const int64_t n = mlp.shape.hidden, row = slot_row(n), x_row = slot_row(mlp.shape.in);
  const int64_t step = chain(mlp.shape, slots);
  for (int64_t s = 0; s < slots; s += step) {
    const int64_t count = at_most(slots - s, step), at = s * row * W;
    product(mlp.fc1.forward, x + s * x_row * W, x_row, tile.gelu + at, row, count, mlp.bias1,
            nullptr);
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
            store(normed + i, tanh(load(value + i) * mlp.alpha));
      } else {
        for (int64_t i = 0; i < n * W; i += W) {
          const vfloat g = gelu(load(value + i));
          store(normed + i, mlp.shape.norm ? tanh(g * mlp.alpha) : g);
        }
      }
    }
  }
}

void mlp_out(const Mlp& mlp, const MlpTile& tile, int64_t slots, float* y, const float* add) {
  product(mlp.fc2.forward, tile.normed, slot_row(mlp.shape.hidden), y, slot_row(mlp.shape.out),
          slots, mlp.bias2, add);
}

void mlp_hidden_backward(const Mlp& mlp, const MlpTile& tile, const float* d_normed, int64_t d_row,
                         const float* weight, int64_t slots, float* dx, float* d_alpha) {
  const int64_t n = mlp.shape.hidden, row = slot_row(n);
  vfloat totals[4] = {};
  for (int64_t s = 0; s < slots; s++) {
    const vfloat factor = weight ? load(weight + s * W) : splat(1.0f);
    const float *d = d_normed + s * d_row * W, *g = tile.gelu + s * row * W;
    const float* normed = tile.normed + s * row * W;
    float* slope = tile.slope + s * row * W;
    if (mlp.shape.norm) {
      const auto feature = [&](int64_t i, vfloat& total) {
        const vfloat value = load(normed + i);
        const vfloat inner = load(d + i) * factor * (1.0f - value * value);
        total += inner * load(g + i);
        store(slope + i, inner * mlp.alpha * load(slope + i));
      };
      int64_t i = 0;
      for (; i + 4 * W <= n * W; i += 4 * W)
#pragma GCC unroll 4
        for (int64_t u = 0; u < 4; u++) feature(i + u * W, totals[u]);
      for (; i < n * W; i += W) feature(i, totals[0]);
    } else {
      for (int64_t i = 0; i < n * W; i += W)
        store(slope + i, load(d + i) * factor * load(slope + i));
    }
  }
  if (mlp.shape.norm) *d_alpha += sum((totals[0] + totals[1]) + (totals[2] + totals[3]));
  if (dx)
    product(mlp.fc1.backward, tile.slope, row, dx, slot_row(mlp.shape.in), slots, nullptr, nullptr);
}

void fc1_backward(const Mlp& mlp, const MlpTile& tile, const float* x, int64_t slots,
                  float* gradient) {
  weight_backward(mlp.fc1, tile.slope, x, slots, gradient);
  if (mlp.bias1)
    lane_sums(tile.slope, slot_row(mlp.shape.hidden), mlp.shape.hidden, slots,
              gradient + mlp.at_bias1);
}

void mlp_backward(const Mlp& mlp, const MlpTile& tile, const float* x, const float* dy,
                  int64_t slots, float* dx, float* gradient, float* scratch) {
  const int64_t row = slot_row(mlp.shape.hidden) * W, out = slot_row(mlp.shape.out);
  const int64_t in = slot_row(mlp.shape.in);
  weight_backward(mlp.fc2, dy, tile.normed, slots, gradient);
  if (mlp.bias2) lane_sums(dy, out, mlp.shape.out, slots, gradient + mlp.at_bias2);
  float unused = 0.0f;
  float* d_alpha = mlp.shape.norm ? gradient + mlp.at_alpha : &unused;
  const int64_t step = chain(mlp.shape, slots);
  for (int64_t s = 0; s < slots; s += step) {
    const int64_t count = at_most(slots - s, step);
    product(mlp.fc2.backward, dy + s * out * W, out, scratch, row / W, count, nullptr, nullptr);
    const MlpTile part{tile.normed + s * row, tile.gelu + s * row, tile.slope + s * row};
    mlp_hidden_backward(mlp, part, scratch, row / W, nullptr, count,
                        dx ? dx + s * in * W : nullptr, d_alpha);
  }
  fc1_backward(mlp, tile, x, slots, gradient);
}

void before_attention(const Block& block, const BlockTile& tile, int64_t slots) {
  const int64_t width = block.shape.width, row = slot_row(width), row3 = slot_row(3 * width);
  const int64_t step = chain(block.shape.mlp, slots);
  for (int64_t s = 0; s < slots; s += step) {
    const int64_t count = at_most(slots - s, step), at = s * row * W;
    norm(tile.in + at, block.alpha1, width, count, tile.normed1 + at);
    product(block.qkv.forward, tile.normed1 + at, row, tile.qkv + s * row3 * W, row3, count,
            nullptr, nullptr);
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
            tile.in + at);
    norm(tile.middle + at, block.alpha2, width, count, tile.normed2 + at);
    const MlpTile part{tile.mlp.normed + s * hidden, tile.mlp.gelu + s * hidden,
                       tile.mlp.slope + s * hidden};
    mlp_hidden(block.mlp, tile.normed2 + at, count, part, keep);
    if (y) mlp_out(block.mlp, part, count, y + at, tile.middle + at);
  }
}

void after_attention_backward(const Block& block, const BlockTile& tile, int64_t slots, float* dx,
                              float* gradient, float* scratch) {
  const int64_t width = block.shape.width;
  float* d_normed = scratch + tile_size(slots, block.mlp.shape.hidden);
  mlp_backward(block.mlp, tile.mlp, tile.normed2, dx, slots, d_normed, gradient, scratch);
  norm_backward(tile.middle, tile.normed2, d_normed, block.alpha2, width, slots, dx,
                gradient + block.at_alpha2);
}

void out_backward(const Block& block, const BlockTile& tile, int64_t slots, const float* dx,
                  float* d_mixed, float* gradient) {
  const int64_t row = slot_row(block.shape.width);
  weight_backward(block.out, dx, tile.mixed, slots, gradient);
  product(block.out.backward, dx, row, d_mixed, row, slots, nullptr, nullptr);
}

void before_attention_backward(const Block& block, const BlockTile& tile, int64_t slots,
                               const float* d_qkv, float* dx, float* gradient, float* scratch) {
  const int64_t width = block.shape.width, row = slot_row(width), row3 = slot_row(3 * width);
  weight_backward(block.qkv, d_qkv, tile.normed1, slots, gradient);
  const int64_t step = chain(block.shape.mlp, slots);
  for (int64_t s = 0; s < slots; s += step) {
    const int64_t count = at_most(slots - s, step), at = s * row * W;
    product(block.qkv.backward, d_qkv + s * row3 * W, row3, scratch, row, count, nullptr, nullptr);
    norm_backward(tile.in + at, tile.normed1 + at, scratch, block.alpha1, width, count, dx + at,
                  gradient + block.at_alpha1);
  }
}

}  // namespace jetkern::JETKERN_ISA
