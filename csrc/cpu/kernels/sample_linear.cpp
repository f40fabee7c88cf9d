#include "../sample_linear.h"

#include "gemm.h"
#include "math.h"
#include "random.h"

// A tile of logits is (classes, rows), rows in the lanes. A row's class is that of the largest
// logit - temperature ln E, E exponential: E = -ln(1 - r) with r uniform. As E > r, whose logarithm
// is at least ln 2 (bits(r) / 2^23 - 127), most classes are passed over without a logarithm.
namespace jetkern::JETKERN_ISA {

namespace {

constexpr int64_t TILE = Draws::TILE;
constexpr float INFINITE = __builtin_inff(), LN_2 = 0.693147181f;

// Whether a > b in any lane.
JETKERN_INLINE bool any_above(vfloat a, vfloat b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)) != 0;
#else
  const vint above = a > b;
  for (int64_t i = 0; i < W; i++)
    if (above[i]) return true;
  return false;
#endif
}

// Logits of `classes` classes from `begin` on, (classes, row).
void logits_of(const Draws& of, const float* x, int64_t lanes, int64_t begin, int64_t classes,
               float* to, int64_t row) {
  gemm(classes, lanes, of.width, of.weight + begin * of.width, of.width, 1,
       packed(x, of.width, of.bf16), to, row, false);
  if (!of.bias) return;
  for (int64_t j = 0; j < classes; j++) {
    const vfloat bias = splat(of.bias[begin + j]);
    for (int64_t c = 0; c < lanes; c += W) store(to + j * row + c, load(to + j * row + c) + bias);
  }
}

// What W rows have drawn so far, from which keys.
struct Rows {
  vlong even, odd;  // keys of the even and of the odd lanes
  vfloat best, cut, last;
  vint drawn, bad;
};

// ln E of the uniform numbers r.
JETKERN_INLINE vfloat log_exponential(vfloat r) {
  vfloat p = splat(1.0f / 6.0f);  // -ln(1 - r) = r + r^2 / 2 + ..., to 2e-8 below 1/16
  p = p * r + 1.0f / 5.0f;
  p = p * r + 1.0f / 4.0f;
  p = p * r + 1.0f / 3.0f;
  p = p * r + 1.0f / 2.0f;
  p = p * (r * r) + r;
  return log_or_zero(select(r < 0.0625f, p, -log_or_zero(1.0f - r)));
}

// Class j with the logits of W rows.
JETKERN_INLINE void offer(const Draws& of, Rows& rows, vfloat logit, int64_t j) {
  const vlong counter = vlong{} + static_cast<uint64_t>(j);
  const vlong low = more_bits(rows.even, counter) >> 33, high = more_bits(rows.odd, counter) >> 33;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  const vint drawn = (vint)(low | (high << 32));
#else
  const vint drawn = (vint)(high | (low << 32));
#endif
  const vfloat uniform = rounded((to_float(drawn) + 0.5f) * 0x1p-31f);
  const vfloat r = min(uniform, splat(0x1.fffffep-1f));
  const vfloat below = to_float(bits(r)) * (LN_2 * 0x1p-23f) - 127.001f * LN_2;
  if (!any_above(logit - of.temperature * below, rows.best)) return;
  const vfloat score = logit - of.temperature * log_exponential(r);
  const vint better = score > rows.best;
  rows.best = select(better, score, rows.best);
  rows.drawn = better ? vint{} + static_cast<int32_t>(j) : rows.drawn;
}

}  // namespace

void sample_linear(const Draws& of, int64_t first, int64_t rows, int64_t* out, float* scratch) {
  float *x = scratch, *logits = x + of.width * TILE;
  const int64_t lanes = round_up(rows, W);
  pack(of.x + first * of.width, 1, of.width, of.width, rows, x, of.bf16);
  Rows drawing[TILE / W];
  for (int64_t i = 0; i < lanes; i++) {
    const int64_t row = first + (i < rows ? i : 0);
    Rows& to = drawing[i / W];
    (i % 2 ? to.odd : to.even)[i % W / 2] = static_cast<uint64_t>(of.keys[row]);
    to.best[i % W] = -INFINITE;
    to.drawn[i % W] = -1;
    to.bad[i % W] = 0;
    to.cut[i % W] = of.cuts ? of.cuts[row] : -INFINITE;
    to.last[i % W] = of.cuts ? static_cast<float>(of.lasts[row]) : 0.0f;
  }
  for (int64_t begin = 0; begin < of.classes; begin += TILE) {
    const int64_t left = of.classes - begin, classes = left < TILE ? left : TILE;
    logits_of(of, x, lanes, begin, classes, logits, TILE);
    for (int64_t c = 0; c < lanes; c += W) {
      Rows own = drawing[c / W];
      for (int64_t j = 0; j < classes; j++) {
        if (of.forbidden && of.forbidden[begin + j]) continue;
        vfloat logit = load(logits + j * TILE + c);
        own.bad |= ~(logit < INFINITE);  // also what is not a number
        if (of.cuts) {
          const vint at_most = splat(static_cast<float>(begin + j)) <= own.last;
          const vint kept = (logit > own.cut) | ((logit == own.cut) & at_most);
          logit = select(kept, logit, splat(-INFINITE));
        }
        offer(of, own, logit, begin + j);
      }
      drawing[c / W] = own;
    }
  }
  for (int64_t i = 0; i < rows; i++) {
    const Rows& from = drawing[i / W];
    out[first + i] = from.bad[i % W] ? -1 : from.drawn[i % W];
  }
}

void sample_linear_logits(const Draws& of, int64_t first, int64_t rows, float* to, float* scratch) {
  pack(of.x + first * of.width, 1, of.width, of.width, rows, scratch, of.bf16);
  logits_of(of, scratch, round_up(rows, W), 0, of.classes, to, Draws::FEW);
}

}  // namespace jetkern::JETKERN_ISA
