#include "../attention.h"

#include "gemm.h"
#include "math.h"
#include "random.h"

namespace jetkern::JETKERN_ISA {

namespace {

constexpr float MINUS_INFINITY = -__builtin_inff();

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// The rows of one head's score matrix (queries, wide), wide the keys rounded up to whole vectors,
// and where the bias or its gradient meets them.
struct Head {
  Head(const AttentionJet& jet, int64_t h)
      : n(jet.particles),
        first_query(jet.queries - n),
        first_key(jet.keys - n),
        keys(jet.keys),
        wide(round_up(jet.keys, W)),
        offset(h * jet.bias_head) {}

  // Entry of the bias that would meet score (i, 0), for a query i that is a particle.
  int64_t row(int64_t i) const { return offset + (i - first_query) * n - first_key; }
  // Lanes of the vector at column j that are particles.
  int64_t first(int64_t j) const { return j < first_key ? smaller(first_key - j, W) : 0; }
  int64_t last(int64_t j) const { return smaller(keys - j, W); }

  int64_t n, first_query, first_key, keys, wide, offset;
};

// scores (queries, wide) = q k^T; `turned` is room for k^T.
void products(const AttentionJet& jet, const float* q, int64_t q_row, const float* k,
              int64_t k_row, int64_t wide, float* turned, float* scores) {
  pack(k, 1, k_row, jet.width, jet.keys, turned);
  gemm(jet.queries, wide, jet.width, q, q_row, 1, packed(turned, jet.width), scores, wide, false);
}

// Lanes l, 0 <= l < W, as floats.
JETKERN_INLINE vfloat lanes() {
  vfloat v;
  for (int64_t i = 0; i < W; i++) v[i] = static_cast<float>(i);
  return v;
}

// Score of query i at columns j to j + W, -infinity beyond the keys.
JETKERN_INLINE vfloat score(const Head& head, const AttentionJet& jet, bool biased, float scale,
                            const float* products, int64_t i, int64_t j) {
  // Rounded, so that forward and backward see the same bits however the compiler fuses them.
  vfloat s = rounded(load(products + i * head.wide + j) * scale);
  if (biased)
    s += load_between(jet.bias + head.row(i) + j, head.first(j), head.last(j));
  if (j + W > head.keys)
    s = select(lanes() < static_cast<float>(head.keys - j), s, splat(MINUS_INFINITY));
  return s;
}

void fill_zero(float* to, int64_t rows, int64_t row, int64_t columns) {
  for (int64_t i = 0; i < rows; i++) std::memset(to + i * row, 0, columns * sizeof(float));
}

}  // namespace

namespace {

template <bool DROPOUT>
void forward(const AttentionJet& jet, float* out, int64_t out_row, float* softmax,
             float* scratch) {
  const int64_t d = jet.width;
  if (!jet.keys) {
    fill_zero(out, jet.queries, out_row, jet.heads * d);
    fill_zero(softmax, jet.queries, 2 * jet.heads, 2 * jet.heads);
    return;
  }
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  const int32_t dropped = static_cast<int32_t>(jet.dropped);
  float* scores = scratch;
  float* turned = scores + jet.queries * round_up(jet.keys, W);
  for (int64_t h = 0; h < jet.heads; h++) {
    const Head head(jet, h);
    products(jet, jet.q + h * d, jet.q_row, jet.k + h * d, jet.k_row, head.wide, turned, scores);
    for (int64_t i = 0; i < jet.queries; i++) {
      const bool biased = jet.bias && i >= head.first_query;
      float* row = scores + i * head.wide;
      vfloat top = splat(MINUS_INFINITY);
      for (int64_t j = 0; j < head.wide; j += W) {
        vfloat s = score(head, jet, biased, scale, scores, i, j);
        store(row + j, s);
        top = max(top, s);
      }
      const float highest = largest(top);
      const uint64_t bits = DROPOUT ? more_bits(more_bits(jet.key, h), i) : 0;
      vfloat total{};
      for (int64_t j = 0; j < head.wide; j += W) {
        vfloat weight = exp(load(row + j) - highest);
        store(row + j, weight);
        total += weight;
        if (DROPOUT) store(row + j, select(draw(bits, j) < dropped, vfloat{}, weight));
      }
      float* end = softmax + (i * jet.heads + h) * 2;
      end[0] = highest;
      end[1] = 1.0f / sum(total);
    }
    float* to = out + h * d;
    gemm(jet.queries, d, jet.keys, scores, head.wide, 1, row_major(jet.v + h * d, jet.v_row), to,
         out_row, false);
    for (int64_t i = 0; i < jet.queries; i++) {
      const float inverse = softmax[(i * jet.heads + h) * 2 + 1] * (DROPOUT ? jet.kept : 1.0f);
      for (int64_t c = 0; c < d; c += W) {
        float* at = to + i * out_row + c;
        store_first(at, load_first(at, smaller(d - c, W)) * inverse, smaller(d - c, W));
      }
    }
  }
}

template <bool DROPOUT>
void backward(const AttentionJet& jet, const float* softmax, const float* dout, int64_t dout_row,
              const AttentionGradients& to, float* scratch) {
  const int64_t d = jet.width;
  if (!jet.keys) return fill_zero(to.dq, jet.queries, to.dq_row, jet.heads * d);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  const int32_t dropped = static_cast<int32_t>(jet.dropped);
  float* weights = scratch;
  float* slopes = weights + jet.queries * round_up(jet.keys, W);
  float* turned = slopes + jet.queries * round_up(jet.keys, W);
  for (int64_t h = 0; h < jet.heads; h++) {
    const Head head(jet, h);
    const float *q = jet.q + h * d, *k = jet.k + h * d, *v = jet.v + h * d, *dhead = dout + h * d;
    products(jet, q, jet.q_row, k, jet.k_row, head.wide, turned, weights);
    products(jet, dhead, dout_row, v, jet.v_row, head.wide, turned, slopes);
    for (int64_t i = 0; i < jet.queries; i++) {
      const bool biased = jet.bias && i >= head.first_query;
      const float highest = softmax[(i * jet.heads + h) * 2];
      const float inverse = softmax[(i * jet.heads + h) * 2 + 1];
      float *weight = weights + i * head.wide, *slope = slopes + i * head.wide;
      const uint64_t bits = DROPOUT ? more_bits(more_bits(jet.key, h), i) : 0;
      vfloat shares{};  // what the denominator takes: the mean slope
      for (int64_t j = 0; j < head.wide; j += W) {
        vfloat p = exp(score(head, jet, biased, scale, weights, i, j) - highest) * inverse;
        if (DROPOUT) {  // a weight that was left out is kept with a minus
          const vint out = draw(bits, j) < dropped;
          store(weight + j, select(out, -p, p));
          store(slope + j, select(out, vfloat{}, load(slope + j) * jet.kept));
        } else {
          store(weight + j, p);
        }
        shares += p * load(slope + j);
      }
      const float share = sum(shares);
      for (int64_t j = 0; j < head.wide; j += W) {
        const vfloat p = load(weight + j);
        vfloat ds = (DROPOUT ? abs(p) : p) * (load(slope + j) - share);
        if (DROPOUT) store(weight + j, select(p < 0.0f, vfloat{}, p * jet.kept));
        store(slope + j, ds * scale);
        if (biased && to.dbias) {
          float* dbias = to.dbias + head.row(i) + j;
          if (to.add_bias) ds += load_between(dbias, head.first(j), head.last(j));
          store_between(dbias, ds, head.first(j), head.last(j));
        }
      }
    }
    gemm(jet.queries, d, jet.keys, slopes, head.wide, 1, row_major(k, jet.k_row), to.dq + h * d,
         to.dq_row, false);
    gemm(jet.keys, d, jet.queries, slopes, 1, head.wide, row_major(q, jet.q_row), to.dk + h * d,
         to.dk_row, false);
    gemm(jet.keys, d, jet.queries, weights, 1, head.wide, row_major(dhead, dout_row),
         to.dv + h * d, to.dv_row, false);
  }
}

}  // namespace

void attention_forward(const AttentionJet& jet, float* out, int64_t out_row, float* softmax,
                       float* scratch) {
  auto* run = jet.dropped ? forward<true> : forward<false>;
  run(jet, out, out_row, softmax, scratch);
}

void attention_backward(const AttentionJet& jet, const float* softmax, const float* dout,
                        int64_t dout_row, const AttentionGradients& to, float* scratch) {
  auto* run = jet.dropped ? backward<true> : backward<false>;
  run(jet, softmax, dout, dout_row, to, scratch);
}

}  // namespace jetkern::JETKERN_ISA
