#include "../causal_attention.h"

#include "gemm.h"
#include "lanes.h"
#include "math.h"

// Scores are kept transposed, (keys, queries): PANEL queries lie in the lanes of two vectors, so
// that softmax never works across lanes and heads of any width fill them. A panel sees the keys up
// to its own last query, KEYS at a time with a running maximum; later ones are never touched.
namespace jetkern::JETKERN_ISA {

namespace {

constexpr float MINUS_INFINITY = -__builtin_inff();
constexpr int64_t KEYS = 128;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Lanes l, 0 <= l < W, as floats.
JETKERN_INLINE vfloat lanes() {
  vfloat v;
  for (int64_t i = 0; i < W; i++) v[i] = static_cast<float>(i);
  return v;
}

// The queries first to first + rows - 1, in the first `lanes` lanes (whole vectors) of a panel.
struct Panel {
  Panel(int64_t n, int64_t at)
      : first(at), rows(smaller(PANEL, n - at)), lanes(round_up(rows, W)), end(at + rows) {}
  int64_t first, rows, lanes, end;
};

// Score of key j for the queries in lanes c to c + W, -infinity for those before it.
JETKERN_INLINE vfloat score(const Panel& panel, vfloat product, float scale, int64_t j, int64_t c) {
  // Rounded, so that forward and backward see the same bits however the compiler fuses them.
  const vfloat s = rounded(product * scale);
  const int64_t before = j - panel.first - c;  // lanes whose query is before the key
  if (before <= 0) return s;
  return select(lanes() < static_cast<float>(before), splat(MINUS_INFINITY), s);
}

// Rows i of `to` = lane i of the vectors from[c * PANEL] times that lane of factor.
void store_rows(const float* from, const Panel& panel, int64_t width, const float* factor,
                float* to, int64_t row) {
  for (int64_t l = 0; l < panel.lanes; l += W) {
    const int64_t rows = smaller(W, panel.rows - l);
    for (int64_t c = 0; c < width; c += W) {
      const int64_t columns = smaller(W, width - c);
      vfloat block[W];
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; i++)
        block[i] = i < columns ? load(from + (c + i) * PANEL + l) * load(factor + l) : vfloat{};
      transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; i++)
        if (i < rows) store_first(to + (l + i) * row + c, block[i], columns);
    }
  }
}

struct Workspace {
  Workspace(float* scratch, int64_t width) : scores(scratch) {
    slopes = scores + KEYS * PANEL;
    q = slopes + KEYS * PANEL;
    dout = q + width * PANEL;
    mixed = dout + width * PANEL;
    top = mixed + width * PANEL;
    total = top + PANEL;
    share = total + PANEL;
  }
  float *scores, *slopes;      // (keys, queries)
  float *q, *dout, *mixed;     // (width, queries)
  float *top, *total, *share;  // (queries): largest score, sum of weights, mean slope
};

}  // namespace

void causal_attention_forward(const CausalSet& set, float* out, int64_t out_row, float* softmax,
                              int64_t softmax_row, float* scratch) {
  const int64_t d = set.width;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  const Workspace work(scratch, d);
  for (int64_t g = 0; g < set.group; g++)
    for (int64_t first = 0; first < set.rows; first += PANEL) {
      const Panel panel(set.rows, first);
      pack(set.q + first * set.q_row + g * d, 1, set.q_row, d, panel.rows, work.q);
      for (int64_t block = 0; block < panel.end; block += KEYS) {
        const int64_t keys = smaller(KEYS, panel.end - block);
        gemm(keys, panel.lanes, d, set.k + block * set.k_row, set.k_row, 1, packed(work.q, d),
             work.scores, PANEL, false);
        for (int64_t c = 0; c < panel.lanes; c += W) {
          float* column = work.scores + c;
          const vfloat before = block ? load(work.top + c) : splat(MINUS_INFINITY);
          vfloat top = before;
          for (int64_t j = 0; j < keys; j++) {
            const vfloat s = score(panel, load(column + j * PANEL), scale, block + j, c);
            store(column + j * PANEL, s);
            top = max(top, s);
          }
          vfloat total{};
          for (int64_t j = 0; j < keys; j++) {
            const vfloat weight = exp(load(column + j * PANEL) - top);
            store(column + j * PANEL, weight);
            total += weight;
          }
          if (block) {
            const vfloat fade = exp(before - top);
            total += load(work.total + c) * fade;
            for (int64_t i = c; i < d * PANEL; i += PANEL)
              store(work.mixed + i, load(work.mixed + i) * fade);
          }
          store(work.top + c, top);
          store(work.total + c, total);
        }
        gemm(d, panel.lanes, keys, set.v + block * set.v_row, 1, set.v_row,
             row_major(work.scores, PANEL), work.mixed, PANEL, block > 0);
      }
      for (int64_t c = 0; c < panel.lanes; c += W)
        store(work.total + c, 1.0f / load(work.total + c));
      store_rows(work.mixed, panel, d, work.total, out + first * out_row + g * d, out_row);
      for (int64_t i = 0; i < panel.rows; i++) {
        float* end = softmax + (first + i) * softmax_row + 2 * g;
        end[0] = work.top[i];
        end[1] = work.total[i];
      }
    }
}

void causal_attention_backward(const CausalSet& set, const float* out, int64_t out_row,
                               const float* softmax, int64_t softmax_row, const float* dout,
                               const CausalGradients& to, float* scratch) {
  const int64_t d = set.width;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  const Workspace work(scratch, d);
  float* ones = work.share + PANEL;
  for (int64_t i = 0; i < PANEL; i++) ones[i] = 1.0f;
  for (int64_t i = 0; i < set.rows; i++) {
    std::memset(to.dk + i * to.dk_row, 0, d * sizeof(float));
    std::memset(to.dv + i * to.dv_row, 0, d * sizeof(float));
  }
  for (int64_t g = 0; g < set.group; g++)
    for (int64_t first = 0; first < set.rows; first += PANEL) {
      const Panel panel(set.rows, first);
      const float* q = set.q + first * set.q_row + g * d;
      const float* slope = dout + first * out_row + g * d;
      pack(q, 1, set.q_row, d, panel.rows, work.q);
      pack(slope, 1, out_row, d, panel.rows, work.dout);
      pack(out + first * out_row + g * d, 1, out_row, d, panel.rows, work.mixed);
      for (int64_t c = 0; c < panel.lanes; c += W) {
        vfloat share{};  // in the order of the products: the first row's slopes vanish exactly
        for (int64_t i = c; i < d * PANEL; i += PANEL)
          share += load(work.dout + i) * load(work.mixed + i);
        store(work.share + c, share);
      }
      for (int64_t i = 0; i < panel.lanes; i++) {
        const float* end = softmax + (first + i) * softmax_row + 2 * g;
        work.top[i] = i < panel.rows ? end[0] : 0.0f;
        work.total[i] = i < panel.rows ? end[1] : 0.0f;
      }
      for (int64_t block = 0; block < panel.end; block += KEYS) {
        const int64_t keys = smaller(KEYS, panel.end - block);
        const float *k = set.k + block * set.k_row, *v = set.v + block * set.v_row;
        gemm(keys, panel.lanes, d, k, set.k_row, 1, packed(work.q, d), work.scores, PANEL, false);
        gemm(keys, panel.lanes, d, v, set.v_row, 1, packed(work.dout, d), work.slopes, PANEL,
             false);
        for (int64_t c = 0; c < panel.lanes; c += W) {
          const vfloat top = load(work.top + c), inverse = load(work.total + c);
          const vfloat share = load(work.share + c);
          for (int64_t j = 0; j < keys; j++) {
            float *weight = work.scores + j * PANEL + c, *ds = work.slopes + j * PANEL + c;
            const vfloat s = score(panel, load(weight), scale, block + j, c);
            const vfloat p = exp(s - top) * inverse;
            store(weight, p);
            store(ds, p * (load(ds) - share) * scale);
          }
        }
        gemm(keys, d, panel.rows, work.scores, PANEL, 1, row_major(slope, out_row),
             to.dv + block * to.dv_row, to.dv_row, true);
        gemm(keys, d, panel.rows, work.slopes, PANEL, 1, row_major(q, set.q_row),
             to.dk + block * to.dk_row, to.dk_row, true);
        gemm(d, panel.lanes, keys, k, 1, set.k_row, row_major(work.slopes, PANEL), work.mixed,
             PANEL, block > 0);
      }
      store_rows(work.mixed, panel, d, ones, to.dq + first * to.dq_row + g * d, to.dq_row);
    }
}

}  // namespace jetkern::JETKERN_ISA
