#include "lanes.h"

#include "tiles.h"

namespace jetkern::JETKERN_ISA {
namespace {

constexpr int64_t OUT = W == 16 ? 8 : 4;  // outputs per panel; OUT * SLOTS sums stay in registers
constexpr int64_t DEPTH = 128;            // inputs (or lanes) per pass: SLOTS * DEPTH vectors fit L1
constexpr int64_t BREADTH = 512;          // outputs per pass: BREADTH * DEPTH weights fit L2
constexpr int64_t BLOCK = BREADTH * DEPTH;

// y(s, o) = sum_k w[o * STEP + k * w_depth] x(s, k) + bias[o] + add(s, o) for N slots, OUT outputs;
// with BF16 k counts lanes of bfloat16.
template <int64_t N, int64_t STEP, bool BF16 = false>
JETKERN_INLINE void panel_product(const float* w, int64_t w_depth, int64_t depth, const float* x,
                                  int64_t x_slot, int64_t x_depth, float* y, int64_t y_slot,
                                  int64_t y_out, int64_t outputs, const float* bias,
                                  const float* add) {
  vfloat acc[OUT][N];
#pragma GCC unroll 8
  for (int64_t o = 0; o < OUT; o++)
#pragma GCC unroll 4
    for (int64_t n = 0; n < N; n++) acc[o][n] = vfloat{};
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; k++, w += w_depth, x += x_depth) {
    vfloat xs[N];
#pragma GCC unroll 4
    for (int64_t n = 0; n < N; n++) xs[n] = load(x + n * x_slot);
#pragma GCC unroll 8
    for (int64_t o = 0; o < OUT; o++) {
      const vfloat weight = splat_at(w + o * STEP);
#pragma GCC unroll 4
      for (int64_t n = 0; n < N; n++) acc[o][n] = add_product<BF16>(acc[o][n], weight, xs[n]);
    }
  }
#pragma GCC unroll 8
  for (int64_t o = 0; o < OUT; o++) {
    if (o >= outputs) break;
    const vfloat start = splat(bias ? bias[o] : 0.0f);
#pragma GCC unroll 4
    for (int64_t n = 0; n < N; n++) {
      const int64_t at = n * y_slot + o * y_out;
      vfloat value = acc[o][n] + start;
      if (add) value += load(add + at);
      store(y + at, value);
    }
  }
}

// The same for any number of slots.
template <int64_t STEP>
JETKERN_INLINE void slots_product(const float* w, int64_t w_depth, int64_t depth, const float* x,
                                  int64_t x_slot, int64_t x_depth, float* y, int64_t y_slot,
                                  int64_t y_out, int64_t outputs, int64_t slots, const float* add) {
  for (int64_t s = 0; s < slots;) {
    const int64_t left = slots - s;
    const int64_t n = left == 4 ? 2 : left < SLOTS ? left : SLOTS;
    const float *from = x + s * x_slot, *a = add ? add + s * y_slot : nullptr;
    float* to = y + s * y_slot;
    if (n == 3)
      panel_product<3, STEP>(w, w_depth, depth, from, x_slot, x_depth, to, y_slot, y_out, outputs,
                             nullptr, a);
    else if (n == 2)
      panel_product<2, STEP>(w, w_depth, depth, from, x_slot, x_depth, to, y_slot, y_out, outputs,
                             nullptr, a);
    else
      panel_product<1, STEP>(w, w_depth, depth, from, x_slot, x_depth, to, y_slot, y_out, outputs,
                             nullptr, a);
    s += n;
  }
}

}  // namespace

namespace {

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// For outer products: outputs and vectors of inputs at a time, and tokens of a pass, whose vectors
// stay in the L1 cache.
constexpr int64_t ROWS = W == 16 ? 12 : 6, COLUMNS = 2, TOKENS = 256;

// Floats of x with the tokens in rows.
int64_t turned_size(int64_t inputs, int64_t slots) {
  return round_up(inputs, COLUMNS * W) * slots * W;
}

// Weights (or lanes of them) of a pass over outputs o0 .. and depth k0 ..
int64_t block_size(int64_t breadth, int64_t depth) { return round_up(breadth, W) * depth; }

// Lanes of n factors, and the depth of a product: of tiles a whole number, filled up with zeros.
int64_t lanes_of(int64_t n) { return (n + PER_LANE - 1) / PER_LANE; }
int64_t depth_of(int64_t inputs, bool bf16) {
  if (!bf16) return inputs;
  return TILES ? round_up(lanes_of(inputs), TILE_ROWS) : lanes_of(inputs);
}

// The left tiles of a product: for each W outputs the tiles of depth k0 .. k0 + depth (lanes).
void pack_tiles(const Panels& p, int64_t o0, int64_t breadth, int64_t k0, int64_t depth, float* to) {
  for (int64_t o = o0; o < o0 + breadth; o += W)
    for (int64_t k = 0; k < depth; k += W, to += TILE_SIZE) {
      const int64_t outputs = smaller(o0 + breadth - o, W);
      vfloat v[PER_LANE][W];  // of each output, W inputs
      for (int64_t h = 0; h < PER_LANE; h++) {
        const int64_t first = (k0 + k) * PER_LANE + h * W;
        const int64_t left = smaller(p.inputs - first, W), inputs = left > 0 ? left : 0;
        const float* from = p.w + o * p.row + first * p.column;
        const bool turned = p.column != 1;
        const int64_t vectors = turned ? inputs : outputs, lanes = turned ? outputs : inputs;
        const int64_t step = turned ? p.column : p.row;
#pragma GCC unroll 16
        for (int64_t l = 0; l < W; l++)
          v[h][l] = l < vectors ? load_first(from + l * step, lanes) : vfloat{};
        if (turned) transpose(v[h]);
        const vfloat by_input = p.by_input ? load_first(p.by_input + first, inputs) : splat(1.0f);
#pragma GCC unroll 16
        for (int64_t l = 0; l < W; l++) {
          const float scale = p.by_output && l < outputs ? p.by_output[o + l] : 1.0f;
          v[h][l] = v[h][l] * scale * by_input;
        }
      }
#pragma GCC unroll 16
      for (int64_t l = 0; l < W; l++) store(to + l * W, bf16_row(v[0][l], v[PER_LANE - 1][l]));
    }
}

// Panels of OUT outputs each: outputs o0 .. o0 + breadth, depth k0 .. k0 + depth (lanes if bf16).
void pack_block(const Panels& p, int64_t o0, int64_t breadth, int64_t k0, int64_t depth, float* to) {
  if (TILES && p.bf16) return pack_tiles(p, o0, breadth, k0, depth, to);
  constexpr int64_t EACH = W / OUT;  // panels that a vector of outputs fills
  const int64_t width = p.bf16 ? PER_LANE : 1, step = W / width;
  for (int64_t o = o0; o < o0 + breadth; o += W, to += EACH * OUT * depth) {
    const int64_t outputs = smaller(o0 + breadth - o, W);
    const vfloat factor = p.by_output ? load_first(p.by_output + o, outputs) : splat(1.0f);
    for (int64_t k = 0; k < depth; k += step) {
      const int64_t first = (k0 + k) * width, inputs = smaller(smaller(p.inputs - first, W), (depth - k) * width);
      vfloat v[W];  // one vector of outputs for each input
      const float* from = p.w + o * p.row + first * p.column;
      if (p.column == 1) {
#pragma GCC unroll 16
        for (int64_t l = 0; l < W; l++)
          v[l] = l < outputs ? load_first(from + l * p.row, inputs) : vfloat{};
        transpose(v);
      } else {
#pragma GCC unroll 16
        for (int64_t l = 0; l < W; l++)
          v[l] = l < inputs ? load_first(from + l * p.column, outputs) : vfloat{};
      }
#pragma GCC unroll 16
      for (int64_t l = 0; l < W; l++) {
        const float scale = p.by_input && l < inputs ? p.by_input[first + l] : 1.0f;
        v[l] = v[l] * scale * factor;
      }
      for (int64_t l = 0; l < W && k + l / width < depth; l += width) {
        float lanes[W];
        store(lanes, p.bf16 ? bf16_lanes(v[l], v[l + width - 1]) : v[l]);
        for (int64_t e = 0; e < EACH && e * OUT < outputs; e++)
          std::memcpy(to + (e * depth + k + l / width) * OUT, lanes + e * OUT, OUT * sizeof(float));
      }
    }
  }
}

// Vector k of a slot holds features PER_LANE * k and, in pairs, the next one.
void round_features(const float* x, int64_t x_row, int64_t inputs, int64_t slots, float* to) {
  const int64_t depth = lanes_of(inputs), all = depth_of(inputs, true), row = slot_row(all);
  for (int64_t s = 0; s < slots; s++) {
    for (int64_t k = 0; k < depth; k++) {
      const float* at = x + (s * x_row + PER_LANE * k) * W;
      const vfloat high = PER_LANE * k + 1 < inputs ? load(at + W) : vfloat{};
      store(to + (s * row + k) * W, bf16_lanes(load(at), high));
    }
    for (int64_t k = depth; k < all; k++) store(to + (s * row + k) * W, vfloat{});
  }
}

// Slot s of the result holds slots PER_LANE * s and, in pairs, the next one.
void round_slots(const float* x, int64_t x_row, int64_t n, int64_t slots, float* to) {
  for (int64_t s = 0; s < slots; s += PER_LANE, to += slot_row(n) * W)
    for (int64_t i = 0; i < n; i++) {
      const float* at = x + (s * x_row + i) * W;
      const vfloat high = s + 1 < slots ? load(at + x_row * W) : vfloat{};
      store(to + i * W, bf16_lanes(load(at), high));
    }
}

// M x N tiles of y, of N slots and 16 M outputs of which `outputs` are stored.
template <int64_t M, int64_t N>
void tiles_product(const float* w, int64_t depth, const float* x, int64_t x_step, float* y,
                   int64_t y_step, int64_t outputs, const float* bias, const float* add) {
  const bool direct = !bias && outputs == M * W;
  each<M * N>([&](auto number) {
    constexpr int64_t T = decltype(number)::value;
    if (direct && add)
      load_tile<T>(add + T % N * y_step + T / N * TILE_SIZE, CLOSE);
    else
      clear_tile<T>();
  });
  add_tiles<M, N>({w, x, depth * W, TILE_SIZE, CLOSE, x_step, TILE_SIZE, CLOSE, depth / TILE_ROWS});
  each<M * N>([&](auto number) {
    constexpr int64_t T = decltype(number)::value;
    const int64_t at = T % N * y_step + T / N * TILE_SIZE;
    if (direct) return store_tile<T>(y + at, CLOSE);
    alignas(64) float sums[TILE_SIZE];
    store_tile<T>(sums, CLOSE);
    for (int64_t o = 0; o < smaller(outputs - T / N * W, W); o++) {
      vfloat value = load(sums + o * W) + (bias ? bias[T / N * W + o] : 0.0f);
      if (add) value += load(add + at + o * W);
      store(y + at + o * W, value);
    }
  });
}

// One pass of `blocks_product` over slots, from packed tiles.
void tile_blocks(const float* block, int64_t breadth, int64_t depth, const float* x, int64_t x_step,
                 float* y, int64_t y_step, int64_t slots, const float* bias, const float* add) {
  for (int64_t s = 0; s < slots;) {
    const int64_t left = slots - s, n = left == 3 ? 3 : left > 1 ? 2 : 1;
    const auto run = n == 3   ? tiles_product<1, 3>
                     : n == 2 ? tiles_product<2, 2>
                              : tiles_product<4, 1>;
    const auto last = n == 3   ? tiles_product<1, 3>
                      : n == 2 ? tiles_product<1, 2>
                               : tiles_product<1, 1>;
    for (int64_t o = 0, m; o < breadth; o += m * W) {
      const bool all = (breadth - o + W - 1) / W >= 4 / n;
      m = all ? 4 / n : 1;  // vectors of outputs
      const int64_t at = s * y_step + o * W;
      (all ? run : last)(block + o * depth, depth, x + s * x_step, x_step, y + at, y_step,
                         smaller(breadth - o, m * W), bias ? bias + o : nullptr,
                         add ? add + at : nullptr);
    }
    s += n;
  }
}

template <bool BF16>
void blocks_product(const Panels& w, const float* x, int64_t x_row, float* y, int64_t y_row,
                    int64_t slots, const float* bias, const float* add, float* room) {
  const int64_t x_step = x_row * W, y_step = y_row * W, all = depth_of(w.inputs, w.bf16);
  const float* block = w.packed ? w.packed : room;
  for (int64_t b0 = 0; b0 < w.outputs; b0 += BREADTH) {
    const int64_t breadth = smaller(w.outputs - b0, BREADTH);
    for (int64_t k0 = 0; k0 < all; k0 += DEPTH) {
      const int64_t depth = smaller(all - k0, DEPTH);
      const float* start = k0 ? y : add;
      if (!w.packed) pack_block(w, b0, breadth, k0, depth, room);
      if constexpr (TILES && BF16)
        tile_blocks(block, breadth, depth, x + k0 * W, x_step, y + b0 * W, y_step, slots,
                    bias && !k0 ? bias + b0 : nullptr, start ? start + b0 * W : nullptr);
      for (int64_t s = TILES && BF16 ? slots : 0; s < slots;) {
        const int64_t left = slots - s;
        const int64_t n = left == 4 ? 2 : left < SLOTS ? left : SLOTS;
        const float *panel = block, *from = x + s * x_step + k0 * W;
        for (int64_t o = b0; o < b0 + breadth; o += OUT, panel += depth * OUT) {
          const int64_t at = s * y_step + o * W;
          const float* a = start ? start + at : nullptr;
          const float* b = bias && !k0 ? bias + o : nullptr;
          const int64_t outputs = smaller(w.outputs - o, OUT);
          if (n == 3)
            panel_product<3, 1, BF16>(panel, OUT, depth, from, x_step, W, y + at, y_step, W,
                                      outputs, b, a);
          else if (n == 2)
            panel_product<2, 1, BF16>(panel, OUT, depth, from, x_step, W, y + at, y_step, W,
                                      outputs, b, a);
          else
            panel_product<1, 1, BF16>(panel, OUT, depth, from, x_step, W, y + at, y_step, W,
                                      outputs, b, a);
        }
        s += n;
      }
      if (w.packed) block += block_size(breadth, depth);
    }
  }
}

}  // namespace

int64_t panels_size(int64_t outputs, int64_t inputs, bool bf16) {
  return block_size(outputs, depth_of(inputs, bf16));
}

void pack_panels(const Panels& panels, float* to) {
  const int64_t all = depth_of(panels.inputs, panels.bf16);
  for (int64_t b0 = 0; b0 < panels.outputs; b0 += BREADTH)
    for (int64_t k0 = 0; k0 < all; k0 += DEPTH) {
      const int64_t breadth = smaller(panels.outputs - b0, BREADTH);
      const int64_t depth = smaller(all - k0, DEPTH);
      pack_block(panels, b0, breadth, k0, depth, to);
      to += block_size(breadth, depth);
    }
}

int64_t product_room(int64_t outputs, int64_t inputs, int64_t slots, bool bf16, bool packed) {
  const int64_t block = packed ? 0 : BLOCK;
  const int64_t forward = block + (bf16 ? tile_size(slots, depth_of(inputs, true)) : 0);
  const int64_t weights =
      bf16 ? tile_size(lanes_of(slots), outputs) + turned_size(inputs, lanes_of(slots))
           : turned_size(inputs, slots);
  return forward > weights ? forward : weights;
}

void product(const Panels& w, const float* x, int64_t x_row, float* y, int64_t y_row, int64_t slots,
             const float* bias, const float* add, float* room) {
  if (!w.bf16) return blocks_product<false>(w, x, x_row, y, y_row, slots, bias, add, room);
  float* rounded = room + (w.packed ? 0 : BLOCK);
  round_features(x, x_row, w.inputs, slots, rounded);
  blocks_product<PER_LANE == 2>(w, rounded, slot_row(depth_of(w.inputs, true)), y, y_row, slots,
                                bias, add, room);
}

void by_token(const float* tokens, int64_t row, int64_t count, int64_t depth, const float* x,
              int64_t x_row, int64_t slots, float* y) {
  const int64_t y_out = slots * W;
  for (int64_t j = 0; j < count; j += OUT) {
    const int64_t outputs = count - j < OUT ? count - j : OUT;
    slots_product<1>(tokens + j / W * row * W + j % W, W, depth, x, x_row * W, W, y + j * y_out, W,
                     y_out, outputs, slots, nullptr);
  }
}

void over_tokens(const float* tokens, int64_t row, int64_t count, int64_t features,
                 const float* x, int64_t slots, float* y, int64_t y_row) {
  for (int64_t f = 0; f < features; f += OUT) {
    const int64_t outputs = features - f < OUT ? features - f : OUT;
    for (int64_t j = 0; j < count; j += W) {
      const int64_t depth = count - j < W ? count - j : W;
      float* to = y + f * W;
      slots_product<W>(tokens + (j / W * row + f) * W, 1, depth, x + j * slots * W, W, slots * W,
                       to, y_row * W, W, outputs, slots, j ? to : nullptr);
    }
  }
}

namespace {

// Tokens from lanes to rows: panels of COLUMNS * W inputs, (slots * W, COLUMNS * W) each, zeros
// beyond the last input. With BF16 the rows of slot s are of PER_LANE * s and, in pairs, the next.
template <bool BF16>
void turn_tokens(const float* x, int64_t x_row, int64_t inputs, int64_t slots, float* to) {
  const int64_t step = BF16 ? PER_LANE : 1;
  for (int64_t panel = 0; panel < inputs; panel += COLUMNS * W)
    for (int64_t s = 0; s < slots; s += step, to += COLUMNS * W * W)
      for (int64_t c = 0; c < COLUMNS * W; c += W) {
        vfloat v[W];
        const float* at = x + (s * x_row + panel + c) * W;
#pragma GCC unroll 16
        for (int64_t i = 0; i < W; i++, at += W) {
          v[i] = panel + c + i < inputs ? load(at) : vfloat{};
          if constexpr (BF16) {
            const bool both = panel + c + i < inputs && s + 1 < slots;
            v[i] = bf16_lanes(v[i], both ? load(at + x_row * W) : vfloat{});
          }
        }
        transpose(v);
#pragma GCC unroll 16
        for (int64_t l = 0; l < W; l++) store(to + l * COLUMNS * W + c, v[l]);
      }
}

// R rows of the outer product and V vectors of columns, the last of which has `last` columns.
template <int64_t R, int64_t V, bool BF16>
void outer_block(const float* y, int64_t y_step, const float* x, int64_t slots, float* to,
                 int64_t to_row, int64_t last) {
  vfloat acc[R][V];
#pragma GCC unroll 12
  for (int64_t r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int64_t v = 0; v < V; v++) acc[r][v] = vfloat{};
  for (int64_t s = 0; s < slots; s++, y += y_step)
    for (int64_t l = 0; l < W; l++, x += COLUMNS * W) {
      vfloat right[V];
#pragma GCC unroll 2
      for (int64_t v = 0; v < V; v++) right[v] = load(x + v * W);
#pragma GCC unroll 12
      for (int64_t r = 0; r < R; r++) {
        const vfloat left = splat_at(y + r * W + l);
#pragma GCC unroll 2
        for (int64_t v = 0; v < V; v++) acc[r][v] = add_product<BF16>(acc[r][v], left, right[v]);
      }
    }
#pragma GCC unroll 12
  for (int64_t r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int64_t v = 0; v < V; v++) {
      float* at = to + r * to_row + v * W;
      if (v == V - 1)
        store_first(at, load_first(at, last) + acc[r][v], last);
      else
        store(at, load(at) + acc[r][v]);
    }
}

template <int64_t R, int64_t V, bool BF16>
void outer_rows(int64_t rows, const float* y, int64_t y_step, const float* x, int64_t slots,
                float* to, int64_t to_row, int64_t last) {
  if constexpr (R > 1)
    if (rows < R) return outer_rows<R - 1, V, BF16>(rows, y, y_step, x, slots, to, to_row, last);
  outer_block<R, V, BF16>(y, y_step, x, slots, to, to_row, last);
}

void outer_tile_blocks(const Outer& f, int64_t first, int64_t end, float* to) {
  constexpr int64_t SLOTS_AT_A_TIME = 2 * TOKENS / W;
  for (int64_t s = 0; s < f.slots; s += SLOTS_AT_A_TIME) {
    const int64_t slots = smaller(f.slots - s, SLOTS_AT_A_TIME);
    const float* x = f.x + s * W * COLUMNS * W;
    for (int64_t i = 0; i < f.inputs; i += COLUMNS * W, x += f.slots * W * COLUMNS * W)
      for (int64_t o = first; o < end; o += 2 * W) {
        const TileFactors factors{f.y + (s * f.y_row + o) * W, x, TILE_SIZE, f.y_row * W, CLOSE, W,
                                  COLUMNS * TILE_SIZE, COLUMNS * CLOSE, slots};
        tile_sums(factors, end - o, f.inputs - i, to + o * f.inputs + i, f.inputs, true);
      }
  }
}

template <bool BF16>
void outer_blocks(const Outer& f, int64_t first, int64_t end, float* to) {
  for (int64_t s = 0; s < f.slots; s += TOKENS / W) {
    const int64_t slots = smaller(f.slots - s, TOKENS / W);
    const float* x = f.x + s * W * COLUMNS * W;
    for (int64_t i = 0; i < f.inputs; i += COLUMNS * W, x += f.slots * W * COLUMNS * W) {
      const int64_t inputs = smaller(f.inputs - i, COLUMNS * W);
      const auto rows_of = inputs > W ? outer_rows<ROWS, 2, BF16> : outer_rows<ROWS, 1, BF16>;
      int64_t o = first;
      for (int64_t blocks = (end - o + ROWS - 1) / ROWS; blocks; blocks--) {
        const int64_t rows = (end - o + blocks - 1) / blocks;  // blocks of about equal height
        rows_of(rows, f.y + (s * f.y_row + o) * W, f.y_row * W, x, slots, to + o * f.inputs + i,
                f.inputs, inputs > W ? inputs - W : inputs);
        o += rows;
      }
    }
  }
}

}  // namespace

Outer outer(const float* y, int64_t y_row, int64_t outputs, const float* x, int64_t x_row,
            int64_t inputs, int64_t slots, bool bf16, float* room) {
  if (!bf16) {
    turn_tokens<false>(x, x_row, inputs, slots, room);
    return {y, room, y_row, inputs, slots, false};
  }
  float* turned = room + tile_size(lanes_of(slots), outputs);
  round_slots(y, y_row, outputs, slots, room);
  turn_tokens<true>(x, x_row, inputs, slots, turned);
  return {room, turned, slot_row(outputs), inputs, lanes_of(slots), true};
}

void outer_product(const Outer& f, int64_t first, int64_t last, float* to) {
  if (TILES && f.bf16)
    outer_tile_blocks(f, first, last, to);
  else if (f.bf16)
    outer_blocks<PER_LANE == 2>(f, first, last, to);
  else
    outer_blocks<false>(f, first, last, to);
}

void lane_sums(const float* y, int64_t y_row, int64_t outputs, int64_t slots, float* to) {
  for (int64_t o = 0; o < outputs; o += W) {
    const int64_t count = outputs - o < W ? outputs - o : W;
    vfloat acc[W];
#pragma GCC unroll 16
    for (int64_t n = 0; n < W; n++) {
      acc[n] = vfloat{};
      if (n < count)
        for (int64_t s = 0; s < slots; s++) acc[n] += load(y + (s * y_row + o + n) * W);
    }
    store_first(to + o, load_first(to + o, count) + sums(acc), count);
  }
}

namespace {

template <int64_t M, int64_t N>
JETKERN_INLINE void lanewise_block(int64_t depth, const float* a, int64_t a_row, int64_t a_column,
                                   const float* b, int64_t b_row, int64_t b_column, float* c,
                                   int64_t c_row, int64_t c_column) {
  vfloat acc[M][N];
#pragma GCC unroll 8
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int64_t j = 0; j < N; j++) acc[i][j] = vfloat{};
  for (int64_t k = 0; k < depth; k++) {
    vfloat right[N];
#pragma GCC unroll 8
    for (int64_t j = 0; j < N; j++) right[j] = load(b + j * b_row + k * b_column);
#pragma GCC unroll 8
    for (int64_t i = 0; i < M; i++) {
      const vfloat left = load(a + i * a_row + k * a_column);
#pragma GCC unroll 8
      for (int64_t j = 0; j < N; j++) acc[i][j] += left * right[j];
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int64_t j = 0; j < N; j++) store(c + i * c_row + j * c_column, acc[i][j]);
}

constexpr int64_t TALL = W == 16 ? 5 : 3, WIDE = W == 16 ? 4 : 3;

template <int64_t M>
JETKERN_INLINE void lanewise_rows(int64_t columns, int64_t depth, const float* a, int64_t a_row,
                                  int64_t a_column, Strided b, float* c, int64_t c_row,
                                  int64_t c_column) {
  int64_t j = 0;
  for (; j + WIDE <= columns; j += WIDE)
    lanewise_block<M, WIDE>(depth, a, a_row, a_column, b.data + j * b.row, b.row, b.column,
                            c + j * c_column, c_row, c_column);
  const int64_t left = columns - j;
  const float* from = b.data + j * b.row;
  c += j * c_column;
  if (left == 3)
    lanewise_block<M, 3>(depth, a, a_row, a_column, from, b.row, b.column, c, c_row, c_column);
  else if (left == 2)
    lanewise_block<M, 2>(depth, a, a_row, a_column, from, b.row, b.column, c, c_row, c_column);
  else if (left == 1)
    lanewise_block<M, 1>(depth, a, a_row, a_column, from, b.row, b.column, c, c_row, c_column);
}

}  // namespace

void lanewise(int64_t rows, int64_t columns, int64_t depth, Strided a, Strided b, float* c,
              int64_t c_row, int64_t c_column) {
  int64_t i = 0;
  for (; i + TALL <= rows; i += TALL)
    lanewise_rows<TALL>(columns, depth, a.data + i * a.row, a.row, a.column, b, c + i * c_row,
                        c_row, c_column);
  for (; i + 2 <= rows; i += 2)
    lanewise_rows<2>(columns, depth, a.data + i * a.row, a.row, a.column, b, c + i * c_row, c_row,
                     c_column);
  if (i < rows)
    lanewise_rows<1>(columns, depth, a.data + i * a.row, a.row, a.column, b, c + i * c_row, c_row,
                     c_column);
}

void rows_to_slot(const float* rows, int64_t row, int64_t n, int64_t count, float* slot) {
  for (int64_t f = 0; f < n; f += W) {
    const int64_t width = n - f < W ? n - f : W;
    vfloat v[W];
#pragma GCC unroll 16
    for (int64_t l = 0; l < W; l++)
      v[l] = l < count ? load_first(rows + l * row + f, width) : vfloat{};
    transpose(v);
    for (int64_t i = 0; i < width; i++) store(slot + (f + i) * W, v[i]);
  }
}

void slot_to_rows(const float* slot, int64_t n, int64_t count, float* rows, int64_t row) {
  for (int64_t f = 0; f < n; f += W) {
    const int64_t width = n - f < W ? n - f : W;
    vfloat v[W];
#pragma GCC unroll 16
    for (int64_t i = 0; i < W; i++) v[i] = i < width ? load(slot + (f + i) * W) : vfloat{};
    transpose(v);
    for (int64_t l = 0; l < count; l++) store_first(rows + l * row + f, v[l], width);
  }
}

}  // namespace jetkern::JETKERN_ISA
