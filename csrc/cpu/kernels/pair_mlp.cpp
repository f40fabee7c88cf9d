#include "../pair_mlp.h"

#include "gemm.h"
#include "math.h"

namespace jetkern::JETKERN_ISA {

namespace {

constexpr int64_t TILE = 48;  // pairs that are worked on at once: whole blocks of gemm's rows

// Floats of a row that holds `width` numbers; what follows them is never used.
int64_t wide(int64_t width) { return round_up(width, W); }

// Where a layer's rearranged weights lie: the transposed weight, the weight, the bias.
struct Layer {
  int64_t in, out;
  const float *forward, *backward, *bias;
};

int64_t layer_size(int64_t in, int64_t out) {
  return packed_size(in, out) + packed_size(out, in) + wide(out);
}

Layer layer(const PairMlp& mlp, const float* panels, int64_t l) {
  for (int64_t k = 0; k < l; k++) panels += layer_size(mlp.widths[k], mlp.widths[k + 1]);
  const int64_t in = mlp.widths[l], out = mlp.widths[l + 1];
  const float* backward = panels + packed_size(in, out);
  return {in, out, panels, backward, backward + packed_size(out, in)};
}

int64_t widest(const PairMlp& mlp) {
  int64_t most = 0;
  for (int64_t l = 0; l <= mlp.layers; l++) most = mlp.widths[l] > most ? mlp.widths[l] : most;
  return wide(most);
}

// Pairs i <= j, in the order of the features, gathered over the jets of a run.
struct Tile {
  int64_t first;                     // row of the features
  int64_t upper[TILE], lower[TILE];  // columns of (i, j) and (j, i)
  int64_t used;
};

template <class Work>
void each_tile(const PairList& run, const Work& work) {
  Tile tile;
  tile.first = run.entry_start;
  tile.used = 0;
  int64_t start = run.pair_start;
  for (int64_t b = run.first; b < run.last; b++) {
    const int64_t n = run.offsets[b + 1] - run.offsets[b];
    for (int64_t j = 0; j < n; j++)
      for (int64_t i = 0; i <= j; i++) {
        tile.upper[tile.used] = start + i * n + j;
        tile.lower[tile.used] = start + j * n + i;
        if (++tile.used < TILE) continue;
        work(tile);
        tile.first += TILE;
        tile.used = 0;
      }
    start += n * n;
  }
  if (tile.used) work(tile);
}

// to (rows, wide(out)) = x W^T, without the bias.
void product(const Layer& layer, int64_t rows, const float* x, int64_t x_row, float* to) {
  gemm(rows, wide(layer.out), layer.in, x, x_row, 1, packed(layer.forward, layer.in), to,
       wide(layer.out), false);
}

}  // namespace

int64_t pair_mlp_panels(const PairMlp& mlp) {
  int64_t total = 0;
  for (int64_t l = 0; l < mlp.layers; l++) total += layer_size(mlp.widths[l], mlp.widths[l + 1]);
  return total;
}

void pair_mlp_pack(const PairMlp& mlp, float* panels) {
  for (int64_t l = 0; l < mlp.layers; l++) {
    const int64_t in = mlp.widths[l], out = mlp.widths[l + 1];
    const float *weight = mlp.weights[2 * l], *bias = mlp.weights[2 * l + 1];
    pack(weight, 1, in, in, out, panels);
    panels += packed_size(in, out);
    pack(weight, in, 1, out, in, panels);
    panels += packed_size(out, in);
    for (int64_t c = 0; c < wide(out); c++) *panels++ = c < out ? bias[c] : 0.0f;
  }
}

int64_t pair_mlp_scratch(const PairMlp& mlp) {
  return 2 * (mlp.layers + 1) * TILE * widest(mlp);
}

void pair_mlp_forward(const PairMlp& mlp, const float* panels, const PairList& run, float* bias,
                      float* scratch) {
  const int64_t heads = mlp.widths[mlp.layers], last = mlp.layers - 1, row = wide(heads);
  each_tile(run, [&](const Tile& tile) {
    const float* x = run.features + tile.first * mlp.widths[0];
    int64_t x_row = mlp.widths[0];
    for (int64_t l = 0; l <= last; l++) {
      const Layer own = layer(mlp, panels, l);
      float* to = scratch + (l & 1) * TILE * widest(mlp);
      product(own, tile.used, x, x_row, to);
      x_row = wide(own.out);
      for (int64_t c = 0; c < x_row; c += W) {
        const vfloat add = load(own.bias + c);
        for (float* at = to + c; at < to + tile.used * x_row; at += x_row)
          store(at, l < last ? gelu(load(at) + add) : load(at) + add);
      }
      x = to;
    }
    for (int64_t h = 0; h < heads; h++) {
      float* to = bias + h * run.pairs;
      for (int64_t q = 0; q < tile.used; q++)
        to[tile.upper[q]] = to[tile.lower[q]] = x[q * row + h];
    }
  });
}

void pair_mlp_backward(const PairMlp& mlp, const float* panels, const PairList& run,
                       const float* dbias, float* gradient, float* d_features, float* scratch) {
  const int64_t heads = mlp.widths[mlp.layers], last = mlp.layers - 1, row = wide(heads);
  const int64_t room = TILE * widest(mlp);
  // Of hidden layer l: its values at hidden(l), the slopes of its GELU one further.
  auto hidden = [&](int64_t l) { return scratch + 2 * (l + 1) * room; };
  for (int64_t i = 0; i < mlp.size(); i++) gradient[i] = 0.0f;
  each_tile(run, [&](const Tile& tile) {
    const float* features = run.features + tile.first * mlp.widths[0];
    for (int64_t l = 0; l < last; l++) {
      const Layer own = layer(mlp, panels, l);
      const int64_t x_row = wide(own.out);
      float *to = hidden(l), *slopes = to + room;
      product(own, tile.used, l ? hidden(l - 1) : features, l ? wide(own.in) : own.in, to);
      for (int64_t c = 0; c < x_row; c += W) {
        const vfloat add = load(own.bias + c);
        for (int64_t at = c; at < tile.used * x_row; at += x_row) {
          vfloat slope;
          store(to + at, gelu(load(to + at) + add, slope));
          store(slopes + at, slope);
        }
      }
    }
    float *d = scratch, *next = scratch + room;
    for (int64_t h = 0; h < heads; h++) {
      const float* from = dbias + h * run.pairs;
      for (int64_t q = 0; q < tile.used; q++) {
        const float other = tile.upper[q] == tile.lower[q] ? 0.0f : from[tile.lower[q]];
        d[q * row + h] = from[tile.upper[q]] + other;
      }
    }
    float* to = gradient + mlp.size();
    for (int64_t l = last; l >= 0; l--) {
      const Layer own = layer(mlp, panels, l);
      const int64_t d_row = wide(own.out), x_row = l ? wide(own.in) : own.in;
      to -= (own.in + 1) * own.out;
      gemm(own.out, own.in, tile.used, d, 1, d_row,
           row_major(l ? hidden(l - 1) : features, x_row), to, own.in, true);
      float* sums = to + own.in * own.out;
      for (int64_t c = 0; c < own.out; c += W) {
        const int64_t lanes = own.out - c < W ? own.out - c : W;
        vfloat total{};
        for (int64_t q = 0; q < tile.used; q++) total += load_first(d + q * d_row + c, lanes);
        store_first(sums + c, load_first(sums + c, lanes) + total, lanes);
      }
      if (!l) {
        if (d_features)
          gemm(tile.used, own.in, own.out, d, d_row, 1, packed(own.backward, own.out),
               d_features + tile.first * own.in, own.in, false);
        break;
      }
      gemm(tile.used, x_row, own.out, d, d_row, 1, packed(own.backward, own.out), next, x_row,
           false);
      const float* slopes = hidden(l - 1) + room;
      for (int64_t at = 0; at < tile.used * x_row; at += W)
        store(next + at, load(next + at) * load(slopes + at));
      float* free = d;
      d = next;
      next = free;
    }
  });
}

}  // namespace jetkern::JETKERN_ISA
