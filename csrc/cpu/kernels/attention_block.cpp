#include "math.h"
#include "../segments.h"
#include "transformer.h"

namespace jetkern::JETKERN_ISA {
namespace {

// A tile is one or more segments; each begins at lane 0 of a slot and fills ceil(n / W) of them.
JETKERN_INLINE int64_t slots_of(const Segments& segments, int64_t b) {
  return round_up(segments.offsets[b + 1] - segments.offsets[b], W) / W;
}

struct Sizes {
  int64_t slots, scores;  // of a tile: slots, and vectors of scores per head
  int64_t most;           // vectors of scores of one segment
};

Sizes tile_sizes(const Segments& segments, int64_t first, int64_t last) {
  Sizes sizes{};
  for (int64_t b = first; b < last; b++) {
    const int64_t slots = slots_of(segments, b), scores = slots * slots * W;
    sizes.slots += slots;
    sizes.scores += scores;
    sizes.most = scores > sizes.most ? scores : sizes.most;
  }
  return sizes;
}

struct Workspace {
  BlockTile tile;
  float *result, *weights, *transposed;
  float *dx, *d_mixed, *d_qkv, *d_scores, *scratch, *room;
};

void make_workspace(const BlockShape& shape, const Sizes& sizes, bool backward, Workspace& work,
                    Arena& arena) {
  work.tile = take_block_tile(shape, sizes.slots, arena);
  work.result = arena.take(tile_size(sizes.slots, shape.width));
  work.weights = arena.take(W * (backward ? sizes.scores * shape.heads : sizes.most));
  work.room = arena.take(room_size(shape, sizes.slots));
  if (!backward) return;
  work.transposed = arena.take(W * sizes.most);
  work.dx = arena.take(tile_size(sizes.slots, shape.width));
  work.d_mixed = arena.take(tile_size(sizes.slots, shape.width) + OVERREAD * W);
  work.d_qkv = arena.take(tile_size(sizes.slots, 3 * shape.width));
  work.d_scores = arena.take(W * sizes.most);
  work.scratch = arena.take(tile_size(sizes.slots, shape.mlp.hidden) +
                            tile_size(sizes.slots, shape.width));
}

// scores(j, s) += bias of query i = s * W + lane and key j. `bias` is (particles, particles), the
// particles being the last of the n tokens.
void add_bias(const float* bias, int64_t particles, int64_t n, int64_t slots, float* scores) {
  const int64_t prefix = n - particles;
  for (int64_t s = 0; s < slots; s++)
    for (int64_t j = 0; j < particles; j += W) {
      const int64_t width = particles - j < W ? particles - j : W;
      vfloat block[W];
#pragma GCC unroll 16
      for (int64_t l = 0; l < W; l++) {
        const int64_t i = s * W + l - prefix;
        block[l] = i >= 0 && i < particles ? load_first(bias + i * particles + j, width) : vfloat{};
      }
      transpose(block);
      for (int64_t c = 0; c < width; c++) {
        float* to = scores + ((prefix + j + c) * slots + s) * W;
        store(to, load(to) + block[c]);
      }
    }
}

// In place, over the n keys; the rows up to slots * W become zero.
void softmax(float* scores, int64_t n, int64_t slots) {
  for (int64_t s = 0; s < slots; s++) {
    float* column = scores + s * W;
    const int64_t row = slots * W;
    vfloat top = load(column);
    for (int64_t j = 1; j < n; j++) top = max(top, load(column + j * row));
    vfloat total{};
    for (int64_t j = 0; j < n; j++) {
      const vfloat e = exp(load(column + j * row) - top);
      store(column + j * row, e);
      total += e;
    }
    const vfloat inverse = 1.0f / total;
    for (int64_t j = 0; j < n; j++) store(column + j * row, load(column + j * row) * inverse);
    for (int64_t j = n; j < slots * W; j++) store(column + j * row, vfloat{});
  }
}

// to(i, t) lane m = from(t * W + m, i / W) lane i % W.
void transpose_scores(const float* from, int64_t slots, float* to) {
  for (int64_t s = 0; s < slots; s++)
    for (int64_t t = 0; t < slots; t++) {
      vfloat block[W];
#pragma GCC unroll 16
      for (int64_t l = 0; l < W; l++) block[l] = load(from + ((t * W + l) * slots + s) * W);
      transpose(block);
#pragma GCC unroll 16
      for (int64_t l = 0; l < W; l++) store(to + ((s * W + l) * slots + t) * W, block[l]);
    }
}

// Attention within each segment; the weights of all heads and segments follow each other if `keep`.
void attend(const BlockShape& shape, const Segments& segments, int64_t first, int64_t last,
            const float* bias, const BlockTile& tile, float* weights, bool keep) {
  const int64_t width = shape.width, d = width / shape.heads;
  const int64_t row = slot_row(width), row3 = slot_row(3 * width);
  const float scale = 1.0f / __builtin_sqrtf(float(d));
  for (int64_t b = first, slot = 0; b < last; b++) {
    const int64_t n = segments.offsets[b + 1] - segments.offsets[b], slots = slots_of(segments, b);
    for (int64_t h = 0; h < shape.heads; h++) {
      const float* q = tile.qkv + (slot * row3 + h * d) * W;
      by_token(q + width * W, row3, n, d, q, row3, slots, weights);
      for (int64_t i = 0; i < n * slots * W; i += W) store(weights + i, load(weights + i) * scale);
      if (bias) {
        const int64_t particles = segments.particles[b + 1] - segments.particles[b];
        add_bias(bias + h * segments.total_pairs + segments.pairs[b], particles, n, slots, weights);
      }
      softmax(weights, n, slots);
      over_tokens(q + 2 * width * W, row3, n, d, weights, slots,
                  tile.mixed + (slot * row + h * d) * W, row);
      if (keep) weights += slots * slots * W * W;
    }
    slot += slots;
  }
}

// Writes row i of a segment's bias gradient for every particle i.
void store_bias(const float* d_scores, int64_t particles, int64_t n, int64_t slots, float* to) {
  const int64_t prefix = n - particles;
  for (int64_t i = prefix; i < n; i++, to += particles) {
    const float* row = d_scores + i * slots * W;
    for (int64_t j = prefix; j < n;) {
      const int64_t left = n - j, count = left < W ? left : W;
      store_first(to + j - prefix, load_first(row + j, count), count);
      j += count;
    }
  }
}

void attend_backward(const BlockShape& shape, const Segments& segments, int64_t first,
                     int64_t last, const Workspace& work, float* d_bias) {
  const int64_t width = shape.width, d = width / shape.heads;
  const int64_t row = slot_row(width), row3 = slot_row(3 * width);
  const float scale = 1.0f / __builtin_sqrtf(float(d));
  const float* weights = work.weights;
  for (int64_t b = first, slot = 0; b < last; b++) {
    const int64_t n = segments.offsets[b + 1] - segments.offsets[b], slots = slots_of(segments, b);
    for (int64_t h = 0; h < shape.heads; h++, weights += slots * slots * W * W) {
      const float* q = work.tile.qkv + (slot * row3 + h * d) * W;
      const float* d_out = work.d_mixed + (slot * row + h * d) * W;
      float* dq = work.d_qkv + (slot * row3 + h * d) * W;
      float* ds = work.d_scores;
      transpose_scores(weights, slots, work.transposed);
      over_tokens(d_out, row, n, d, work.transposed, slots, dq + 2 * width * W, row3);
      by_token(q + 2 * width * W, row3, n, d, d_out, row, slots, ds);
      for (int64_t s = 0; s < slots; s++) {
        vfloat dot{};
        for (int64_t j = 0; j < n; j++)
          dot += load(weights + (j * slots + s) * W) * load(ds + (j * slots + s) * W);
        for (int64_t j = 0; j < n; j++) {
          const int64_t at = (j * slots + s) * W;
          store(ds + at, load(weights + at) * (load(ds + at) - dot));
        }
        for (int64_t j = n; j < slots * W; j++) store(ds + (j * slots + s) * W, vfloat{});
      }
      transpose_scores(ds, slots, work.transposed);
      if (d_bias) {
        const int64_t particles = segments.particles[b + 1] - segments.particles[b];
        store_bias(work.transposed, particles, n, slots,
                   d_bias + h * segments.total_pairs + segments.pairs[b]);
      }
      over_tokens(q + width * W, row3, n, d, ds, slots, dq, row3);
      over_tokens(q, row3, n, d, work.transposed, slots, dq + width * W, row3);
      for (int64_t s = 0; s < slots; s++)
        for (int64_t i = 0; i < d; i++) {
          float* to = dq + (s * row3 + i) * W;
          store(to, load(to) * scale);
          store(to + width * W, load(to + width * W) * scale);
        }
    }
    slot += slots;
  }
}

void load_rows(const BlockShape& shape, const Segments& segments, int64_t first, int64_t last,
               const float* x, float* to) {
  const int64_t width = shape.width, row = slot_row(width);
  for (int64_t b = first; b < last; b++)
    for (int64_t r = segments.offsets[b]; r < segments.offsets[b + 1]; r += W, to += row * W) {
      const int64_t left = segments.offsets[b + 1] - r;
      rows_to_slot(x + r * width, width, width, left < W ? left : W, to);
    }
}

void store_rows(const BlockShape& shape, const Segments& segments, int64_t first, int64_t last,
                const float* from, float* x) {
  const int64_t width = shape.width, row = slot_row(width);
  for (int64_t b = first; b < last; b++)
    for (int64_t r = segments.offsets[b]; r < segments.offsets[b + 1]; r += W, from += row * W) {
      const int64_t left = segments.offsets[b + 1] - r;
      slot_to_rows(from, width, left < W ? left : W, x + r * width, width);
    }
}

}  // namespace

int64_t attention_block_panels(const BlockShape& shape, bool backward) {
  Layout layout{nullptr, {nullptr}, false, backward, nullptr};
  make_block(shape, layout);
  return layout.panels.used;
}

GradientSize attention_block_gradient(const BlockShape& shape) {
  Layout layout{nullptr, {nullptr}, false, false, nullptr};
  make_block(shape, layout);
  return layout.gradient;
}

void attention_block_pack(const BlockShape& shape, const float* const* weights, bool backward,
                          float* panels) {
  Layout layout{weights, {panels}, true, backward, nullptr};
  make_block(shape, layout);
}

int64_t attention_block_slots(const Segments& segments, int64_t b) { return slots_of(segments, b); }

int64_t attention_block_scratch(const BlockShape& shape, const Segments& segments, int64_t first,
                                int64_t last, bool backward) {
  Workspace work;
  Arena arena{nullptr};
  make_workspace(shape, tile_sizes(segments, first, last), backward, work, arena);
  return arena.used;
}

void attention_block_forward(const BlockShape& shape, const float* const* weights, float* panels,
                             const Segments& segments, int64_t first, int64_t last, const float* x,
                             const float* bias, float* out, float* scratch) {
  const Sizes sizes = tile_sizes(segments, first, last);
  Workspace work;
  Arena arena{scratch};
  make_workspace(shape, sizes, false, work, arena);
  Layout layout{weights, {panels}, false, false, work.room};
  const Block block = make_block(shape, layout);
  load_rows(shape, segments, first, last, x, work.tile.in);
  before_attention(block, work.tile, sizes.slots);
  attend(shape, segments, first, last, bias, work.tile, work.weights, false);
  after_attention(block, work.tile, sizes.slots, false, work.result);
  store_rows(shape, segments, first, last, work.result, out);
}

// Writes the rows of dx and the pairs of d_bias (null without a bias) of the segments, and adds
// their contribution to the gradient of the folded weights.
void attention_block_backward(const BlockShape& shape, const float* const* weights, float* panels,
                              const Segments& segments, int64_t first, int64_t last,
                              const float* x, const float* bias, const float* d_out, float* dx,
                              float* d_bias, const Gradient& gradient, float* scratch) {
  const Sizes sizes = tile_sizes(segments, first, last);
  Workspace work;
  Arena arena{scratch};
  make_workspace(shape, sizes, true, work, arena);
  Layout layout{weights, {panels}, false, true, work.room};
  const Block block = make_block(shape, layout);
  load_rows(shape, segments, first, last, x, work.tile.in);
  before_attention(block, work.tile, sizes.slots);
  attend(shape, segments, first, last, bias, work.tile, work.weights, true);
  after_attention(block, work.tile, sizes.slots, true, nullptr);
  load_rows(shape, segments, first, last, d_out, work.dx);
  after_attention_backward(block, work.tile, sizes.slots, work.dx, gradient, work.scratch);
  out_backward(block, work.tile, sizes.slots, work.dx, work.d_mixed, gradient);
  attend_backward(shape, segments, first, last, work, d_bias);
  before_attention_backward(block, work.tile, sizes.slots, work.d_qkv, work.dx, gradient,
                            work.scratch);
  store_rows(shape, segments, first, last, work.dx, dx);
}

void attention_block_unfold(const BlockShape& shape, const float* const* weights,
                            const double* alphas, float* gradient) {
  Layout layout{weights, {nullptr}, false, false, nullptr};
  unfold(make_block(shape, layout), alphas, gradient);
}

}  // namespace jetkern::JETKERN_ISA
