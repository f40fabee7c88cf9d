#include "../pair_bias.h"

#include "gemm.h"
#include "pair_features.h"

namespace jetkern::JETKERN_ISA {

namespace {

// Pairs i < j, gathered over the jets of a run; entries past `used` repeat the pair (0, 0, 0, 0).
struct Tile {
  float d_eta[PAIR_TILE], d_phi[PAIR_TILE];
  float ln_pt_i[PAIR_TILE], ln_pt_j[PAIR_TILE];
  int64_t upper[PAIR_TILE], lower[PAIR_TILE];  // columns of (i, j) and (j, i)
  int64_t first[PAIR_TILE], second[PAIR_TILE]; // rows of i and j
  int64_t used;

  void clear() {
    for (int64_t q = 0; q < PAIR_TILE; q++)
      d_eta[q] = d_phi[q] = ln_pt_i[q] = ln_pt_j[q] = 0.0f;
    used = 0;
  }

  // ln m^2, ln delta R and ln kT (3, PAIR_TILE); the specification is in pair_features/reference.py.
  void features(float* to) const {
    for (int64_t q = 0; q < PAIR_TILE; q += W) {
      const vfloat i = load(ln_pt_i + q), j = load(ln_pt_j + q);
      const vfloat least = select((i < j) | (i != i), i, j);  // NaN stays
      const PairFeatures pair = pair_features(load(d_eta + q), load(d_phi + q), i + j, least);
      store(to + q, pair.ln_m2);
      store(to + PAIR_TILE + q, pair.ln_r);
      store(to + 2 * PAIR_TILE + q, pair.ln_kt);
    }
  }
};

// Calls flush(tile) for all pairs i < j of the run and diagonal(column, n) for each jet.
template <class Flush, class Diagonal>
void each_tile(const PairRun& run, const Flush& flush, const Diagonal& diagonal) {
  Tile tile;
  tile.clear();
  int64_t start = run.pair_start;
  for (int64_t b = run.first; b < run.last; b++) {
    const int64_t n = run.offsets[b + 1] - run.offsets[b];
    const float* jet = run.particles + run.offsets[b] * run.particle_row;
    for (int64_t i = 0; i < n; i++) {
      const float* a = jet + i * run.particle_row;
      for (int64_t j = i + 1; j < n; j++) {
        const float* c = jet + j * run.particle_row;
        const int64_t q = tile.used++;
        tile.d_eta[q] = a[0] - c[0];
        tile.d_phi[q] = a[1] - c[1];
        tile.ln_pt_i[q] = a[2];
        tile.ln_pt_j[q] = c[2];
        tile.upper[q] = start + i * n + j;
        tile.lower[q] = start + j * n + i;
        tile.first[q] = run.offsets[b] + i;
        tile.second[q] = run.offsets[b] + j;
        if (tile.used == PAIR_TILE) {
          flush(tile);
          tile.used = 0;
        }
      }
    }
    diagonal(start, n);
    start += n * n;
  }
  if (tile.used) flush(tile);
}

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// out (H, PAIR_TILE) = the perceptron of `features`; `hidden` is (PAIR_BLOCK, PAIR_TILE).
void evaluate(const PairPerceptron& p, const float* features, float* hidden, float* out) {
  for (int64_t h = 0; h < p.heads; h++)
    for (int64_t q = 0; q < PAIR_TILE; q++) out[h * PAIR_TILE + q] = p.fc2_bias[h];
  for (int64_t first = 0; first < p.hidden; first += PAIR_BLOCK) {
    const int64_t block = smaller(p.hidden - first, PAIR_BLOCK);
    for (int64_t c = 0; c < block; c++) {
      const float* w = p.fc1_weight + (first + c) * 3;
      const float bias = p.fc1_bias[first + c];
      for (int64_t q = 0; q < PAIR_TILE; q += W)
        store(hidden + c * PAIR_TILE + q,
              gelu(load(features + q) * w[0] + load(features + PAIR_TILE + q) * w[1] +
                   load(features + 2 * PAIR_TILE + q) * w[2] + bias));
    }
    gemm(p.heads, PAIR_TILE, block, p.fc2_weight + first, p.hidden, 1,
         row_major(hidden, PAIR_TILE), out, PAIR_TILE, true);
  }
}

}  // namespace

namespace {

// Adds the gradients of both particles of the tile's pairs, from that of their features.
void particles_backward(const Tile& tile, const float* d_features, float* to) {
  for (int64_t start = 0; start < tile.used; start += W) {
    const PairSlopes slopes = pair_slopes(
        load(tile.d_eta + start), load(tile.d_phi + start),
        {load(d_features + start), load(d_features + PAIR_TILE + start),
         load(d_features + 2 * PAIR_TILE + start)});
    const vfloat d_ln_pt = load(tile.ln_pt_i + start) - load(tile.ln_pt_j + start);
    const vfloat share = share_of_first(d_ln_pt) * slopes.min_ln_pt;
    const vfloat one = slopes.sum_ln_pt + share;
    const vfloat other = slopes.sum_ln_pt + (slopes.min_ln_pt - share);
    for (int64_t l = 0; l < smaller(tile.used - start, W); l++) {
      float *a = to + tile.first[start + l] * 4, *b = to + tile.second[start + l] * 4;
      a[0] += slopes.eta[l];
      b[0] -= slopes.eta[l];
      a[1] += slopes.phi[l];
      b[1] -= slopes.phi[l];
      a[2] += one[l];
      b[2] += other[l];
    }
  }
}

}  // namespace

void pair_bias_forward(const PairPerceptron& p, const PairRun& run, float* bias, float* scratch) {
  float* hidden = scratch;
  float* features = hidden + PAIR_BLOCK * PAIR_TILE;
  float* out = features + 3 * PAIR_TILE;
  float* same = out + p.heads * PAIR_TILE;  // the bias of a particle with itself
  for (int64_t q = 0; q < 3 * PAIR_TILE; q++) features[q] = 0.0f;
  evaluate(p, features, hidden, out);
  for (int64_t h = 0; h < p.heads; h++) same[h] = out[h * PAIR_TILE];
  each_tile(
      run,
      [&](const Tile& tile) {
        tile.features(features);
        evaluate(p, features, hidden, out);
        for (int64_t h = 0; h < p.heads; h++) {
          float* to = bias + h * run.pairs;
          const float* from = out + h * PAIR_TILE;
          for (int64_t q = 0; q < tile.used; q++) to[tile.upper[q]] = to[tile.lower[q]] = from[q];
        }
      },
      [&](int64_t start, int64_t n) {
        for (int64_t h = 0; h < p.heads; h++)
          for (int64_t i = 0; i < n; i++) bias[h * run.pairs + start + i * (n + 1)] = same[h];
      });
}

void pair_bias_backward(const PairPerceptron& p, const PairRun& run, const float* dbias,
                        float* gradient, float* d_particles, float* scratch) {
  const int64_t C = p.hidden, wide = round_up(C, PAIR_BLOCK);
  float* hidden = scratch;                           // (PAIR_TILE, PAIR_BLOCK) gelu(fc1)
  float* slopes = hidden + PAIR_TILE * PAIR_BLOCK;   // (PAIR_TILE, PAIR_BLOCK) d loss / d fc1
  float* features = slopes + PAIR_TILE * PAIR_BLOCK; // (4, PAIR_TILE), the last row 1
  float* dout = features + 4 * PAIR_TILE;            // (PAIR_TILE, H)
  float* same = dout + PAIR_TILE * p.heads;          // (H) gradient of the diagonals
  float* d_features = same + p.heads;                // (3, PAIR_TILE)
  float* fc1 = d_features + 3 * PAIR_TILE;           // (4, wide) weight transposed, then bias
  for (int64_t c = 0; c < wide; c++)
    for (int64_t k = 0; k < 4; k++)
      fc1[k * wide + c] = c >= C ? 0.0f : k < 3 ? p.fc1_weight[c * 3 + k] : p.fc1_bias[c];
  for (int64_t i = 0; i < pair_gradient_size(C, p.heads); i++) gradient[i] = 0.0f;
  if (d_particles)
    for (int64_t i = 4 * run.offsets[run.first]; i < 4 * run.offsets[run.last]; i++)
      d_particles[i] = 0.0f;
  for (int64_t h = 0; h < p.heads; h++) same[h] = 0.0f;
  for (int64_t q = 0; q < PAIR_TILE; q++) features[3 * PAIR_TILE + q] = 1.0f;

  auto accumulate = [&](int64_t used) {
    for (int64_t q = 0; q < 3 * PAIR_TILE; q++) d_features[q] = 0.0f;
    for (int64_t h = 0; h < p.heads; h++) {
      float total = 0.0f;
      for (int64_t q = 0; q < used; q++) total += dout[q * p.heads + h];
      gradient[(4 + p.heads) * C + h] += total;
    }
    for (int64_t first = 0; first < C; first += PAIR_BLOCK) {
      const int64_t block = smaller(C - first, PAIR_BLOCK);
      gemm(used, block, p.heads, dout, p.heads, 1, row_major(p.fc2_weight + first, C), slopes,
           PAIR_BLOCK, false);
      for (int64_t c = 0; c < block; c += W) {
        const vfloat w0 = load(fc1 + first + c), w1 = load(fc1 + wide + first + c),
                     w2 = load(fc1 + 2 * wide + first + c), bias = load(fc1 + 3 * wide + first + c);
        for (int64_t q = 0; q < used; q++) {
          vfloat slope;
          vfloat x = w0 * features[q] + w1 * features[PAIR_TILE + q] +
                     w2 * features[2 * PAIR_TILE + q] + bias;
          store(hidden + q * PAIR_BLOCK + c, gelu(x, slope));
          store(slopes + q * PAIR_BLOCK + c, load(slopes + q * PAIR_BLOCK + c) * slope);
        }
      }
      if (d_particles)
        for (int64_t q = 0; q < used; q++)
          for (int64_t k = 0; k < 3; k++) {
            vfloat total{};
            for (int64_t c = 0; c < block; c += W)
              total += load_first(slopes + q * PAIR_BLOCK + c, smaller(block - c, W)) *
                       load(fc1 + k * wide + first + c);
            d_features[k * PAIR_TILE + q] += sum(total);
          }
      gemm(4, block, used, features, PAIR_TILE, 1, row_major(slopes, PAIR_BLOCK), gradient + first,
           C, true);
      gemm(p.heads, block, used, dout, 1, p.heads, row_major(hidden, PAIR_BLOCK),
           gradient + 4 * C + first, C, true);
    }
  };

  each_tile(
      run,
      [&](const Tile& tile) {
        tile.features(features);
        for (int64_t h = 0; h < p.heads; h++) {
          const float* from = dbias + h * run.pairs;
          for (int64_t q = 0; q < tile.used; q++)
            dout[q * p.heads + h] = from[tile.upper[q]] + from[tile.lower[q]];
        }
        accumulate(tile.used);
        if (d_particles) particles_backward(tile, d_features, d_particles);
      },
      [&](int64_t start, int64_t n) {
        for (int64_t h = 0; h < p.heads; h++)
          for (int64_t i = 0; i < n; i++) same[h] += dbias[h * run.pairs + start + i * (n + 1)];
      });
  for (int64_t k = 0; k < 3; k++) features[k * PAIR_TILE] = 0.0f;
  for (int64_t h = 0; h < p.heads; h++) dout[h] = same[h];
  accumulate(1);
}

}  // namespace jetkern::JETKERN_ISA
