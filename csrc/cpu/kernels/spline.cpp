#include "../spline.h"

#include "lanes.h"
#include "math.h"

// Values are in the lanes. Equations: Durkan et al., arXiv 1906.04032, section 3.1.
namespace jetkern::JETKERN_ISA {

namespace {

JETKERN_INLINE vfloat log(vfloat x) {  // not a number unless x is positive
  return select(x > 0.0f, log_or_zero(x), splat(__builtin_nanf("")));
}

JETKERN_INLINE vfloat softplus(vfloat x) {
  return select(x == x, max(x, vfloat{}) + log_or_zero(1.0f + exp(-abs(x))), x);
}

struct Workspace {
  Workspace(const Spline& of, float* scratch) : raw(scratch) {
    for (int axis = 0; axis < 2; axis++) {
      share[axis] = raw + W * (of.numbers() + axis * of.bins);
      knot[axis] = raw + W * (of.numbers() + (2 + axis) * of.bins);
    }
  }
  float* raw;                // (numbers, lanes)
  float *share[2], *knot[2];  // softmaxes, and where bins begin (bins, lanes)
};

// The first `count` rows of `width` numbers, turned: number p is the vector at to + p * W.
void load_rows(const float* from, int64_t count, int64_t width, float* to) {
  for (int64_t c = 0; c < width; c += W) {
    const int64_t columns = width - c < W ? width - c : W;
    vfloat block[W];
#pragma GCC unroll 16
    for (int64_t i = 0; i < W; i++)
      block[i] = i < count ? load_first(from + i * width + c, columns) : vfloat{};
    transpose(block);
#pragma GCC unroll 16
    for (int64_t i = 0; i < W; i++)
      if (i < columns) store(to + (c + i) * W, block[i]);
  }
}

void store_rows(const float* from, int64_t count, int64_t width, float* to) {
  for (int64_t c = 0; c < width; c += W) {
    const int64_t columns = width - c < W ? width - c : W;
    vfloat block[W];
#pragma GCC unroll 16
    for (int64_t i = 0; i < W; i++)
      block[i] = i < columns ? load(from + (c + i) * W) : vfloat{};
    transpose(block);
#pragma GCC unroll 16
    for (int64_t i = 0; i < W; i++)
      if (i < count) store_first(to + i * width + c, block[i], columns);
  }
}

// The bin of each value, and what Eqs. 4 and 5 need of it.
struct Bin {
  vint chosen;
  vfloat at, x0, width, y0, height, raw0, raw1, d0, d1, s, bend;
  vint inside;
};

Bin bin_of(const Spline& of, vfloat x, const Workspace& work) {
  const int64_t bins = of.bins;
  const float left = 1.0f - of.least * static_cast<float>(bins);
  for (int axis = 0; axis < 2; axis++) {
    const float* raw = work.raw + axis * bins * W;
    float *share = work.share[axis], *knot = work.knot[axis];
    vfloat top = load(raw), total{}, sum{}, lost{};
    for (int64_t k = 1; k < bins; k++) top = max(top, load(raw + k * W));
    for (int64_t k = 0; k < bins; k++) {
      const vfloat weight = exp(load(raw + k * W) - top);
      store(share + k * W, weight);
      total += weight;
    }
    const vfloat scale = 1.0f / total;
    for (int64_t k = 0; k < bins; k++) {
      store(knot + k * W, (sum * (2.0f * of.tail) - of.tail) + lost * (2.0f * of.tail));
      const vfloat own = load(share + k * W) * scale;
      store(share + k * W, own);
      // What the sum rounds away is kept beside it.
      const vfloat wide = of.least + left * own, before = sum;
      sum += wide;
      const vfloat added = sum - before;
      lost += (before - (sum - added)) + (wide - added);
    }
  }
  Bin b;
  b.inside = (x > -of.tail) & (x < of.tail);
  b.at = select(b.inside, x, vfloat{});
  const float *searched = work.knot[of.inverse], *slopes = work.raw + 2 * bins * W;
  b.width = load(work.share[0]);
  b.height = load(work.share[1]);
  b.x0 = load(work.knot[0]);
  b.y0 = load(work.knot[1]);
  b.raw0 = vfloat{};
  b.raw1 = bins > 1 ? load(slopes) : vfloat{};
  b.chosen = vint{};
  for (int64_t k = 1; k < bins; k++) {
    const vint above = b.at >= load(searched + k * W);
    b.chosen -= above;
    b.x0 = select(above, load(work.knot[0] + k * W), b.x0);
    b.y0 = select(above, load(work.knot[1] + k * W), b.y0);
    b.width = select(above, load(work.share[0] + k * W), b.width);
    b.height = select(above, load(work.share[1] + k * W), b.height);
    b.raw0 = select(above, load(slopes + (k - 1) * W), b.raw0);
    b.raw1 = select(above, k + 1 < bins ? load(slopes + k * W) : vfloat{}, b.raw1);
  }
  // From the bin's share: the knot where it ends need not be chosen, too.
  b.width = (of.least + left * b.width) * (2.0f * of.tail);
  b.height = (of.least + left * b.height) * (2.0f * of.tail);
  const vfloat one = splat(1.0f);
  b.d0 = select(b.chosen > 0, of.least + softplus(b.raw0 + of.shift), one);
  b.d1 = select(b.chosen < static_cast<int32_t>(bins - 1), of.least + softplus(b.raw1 + of.shift),
                one);
  b.s = b.height / b.width;
  b.bend = b.d1 + b.d0 - 2.0f * b.s;
  return b;
}

JETKERN_INLINE vfloat root(vfloat x) {
  vfloat y;
  for (int64_t i = 0; i < W; i++) y[i] = __builtin_sqrtf(x[i]);
  return y;
}

}  // namespace

void spline_forward(const Spline& of, const float* x, const float* raw, int64_t n, float* out,
                    float* scratch) {
  const Workspace work(of, scratch);
  for (int64_t first = 0; first < n; first += W) {
    const int64_t count = n - first < W ? n - first : W;
    load_rows(raw + first * of.numbers(), count, of.numbers(), work.raw);
    const vfloat value = load_first(x + first, count);
    const Bin b = bin_of(of, value, work);
    vfloat share;
    if (of.inverse) {  // Eqs. 6 to 8
      const vfloat rise = b.at - b.y0, mixed = rise * b.bend;
      const vfloat p = b.height * (b.s - b.d0) + mixed, q = b.height * b.d0 - mixed;
      const vfloat r = -b.s * rise, square = q * q - 4.0f * p * r;
      share = 2.0f * r / (-q - root(select(square < 0.0f, vfloat{}, square)));
    } else {
      share = (b.at - b.x0) / b.width;
    }
    const vfloat rest = 1.0f - share, squared = share * share, both = share * rest;
    const vfloat bottom = b.s + b.bend * both;
    const vfloat moved =
        of.inverse ? share * b.width + b.x0
                   : b.y0 + b.height * (b.s * squared + b.d0 * both) / bottom;  // Eq. 4
    const vfloat top = b.s * b.s * (b.d1 * squared + 2.0f * b.s * both + b.d0 * rest * rest);
    const vfloat slope = log(top) - 2.0f * log(bottom);  // of Eq. 5
    const vfloat y = select(b.inside, moved, value);
    const vfloat ln = select(b.inside, of.inverse ? -slope : slope, vfloat{});
    for (int64_t i = 0; i < count; i++) {
      out[2 * (first + i)] = y[i];
      out[2 * (first + i) + 1] = ln[i];
    }
  }
}

void spline_backward(const Spline& of, const float* d_out, const float* x, const float* raw,
                     int64_t n, float* d_x, float* d_raw, float* scratch) {
  const Workspace work(of, scratch);
  const int64_t bins = of.bins;
  const float left = 1.0f - of.least * static_cast<float>(bins);
  for (int64_t first = 0; first < n; first += W) {
    const int64_t count = n - first < W ? n - first : W;
    load_rows(raw + first * of.numbers(), count, of.numbers(), work.raw);
    const Bin b = bin_of(of, load_first(x + first, count), work);
    vfloat up{}, up_ln{};
    for (int64_t i = 0; i < count; i++) {
      up[i] = d_out[2 * (first + i)];
      up_ln[i] = d_out[2 * (first + i) + 1];
    }
    const vfloat share = (b.at - b.x0) / b.width, rest = 1.0f - share;
    const vfloat squared = share * share, both = share * rest;
    const vfloat bottom = b.s + b.bend * both, inner = b.s * squared + b.d0 * both;
    const vfloat slopes = b.d1 * squared + 2.0f * b.s * both + b.d0 * rest * rest;
    // y = y0 + height inner / bottom; ln = 2 ln s + ln slopes - 2 ln bottom
    const vfloat in = select(b.inside, up, vfloat{}), ln = select(b.inside, up_ln, vfloat{});
    vfloat d_height = in * inner / bottom;
    const vfloat d_inner = in * b.height / bottom, d_slopes = ln / slopes;
    const vfloat d_bottom = -(d_height * b.height + 2.0f * ln) / bottom;
    const vfloat d_bend = d_bottom * both;
    const vfloat d_both = d_inner * b.d0 + 2.0f * d_slopes * b.s + d_bottom * b.bend;
    vfloat d_s = 2.0f * ln / b.s + d_inner * squared + 2.0f * d_slopes * both + d_bottom -
                 2.0f * d_bend;
    const vfloat d_d0 = d_inner * both + d_slopes * rest * rest + d_bend;
    const vfloat d_d1 = d_slopes * squared + d_bend;
    const vfloat d_rest = 2.0f * d_slopes * b.d0 * rest + d_both * share;
    const vfloat d_share =
        2.0f * share * (d_inner * b.s + d_slopes * b.d1) + d_both * rest - d_rest;
    d_height += d_s / b.width;
    const vfloat d_at = d_share / b.width;
    const vfloat d_width = -(d_s * b.s + d_share * share) / b.width;
    store_first(d_x + first, select(b.inside, d_at, up), count);

    const vint last = b.chosen == static_cast<int32_t>(bins - 1);
    const vfloat d_start[2] = {-d_at - d_width, in - d_height};
    const vfloat d_end[2] = {select(last, vfloat{}, d_width), select(last, vfloat{}, d_height)};
    for (int axis = 0; axis < 2; axis++) {
      const float* own = work.share[axis];
      float* to = work.raw + axis * bins * W;
      vfloat mean{};
      for (int64_t k = 0; k < bins; k++) {
        const vint before = vint{} + static_cast<int32_t>(k);
        // A bin moves all knots after it: the start of the chosen one, and its end.
        vfloat d = select(before < b.chosen, d_start[axis], vfloat{});
        d += select(before <= b.chosen, d_end[axis], vfloat{});
        d *= 2.0f * of.tail * left;
        mean += d * load(own + k * W);
        store(to + k * W, d);
      }
      for (int64_t k = 0; k < bins; k++)
        store(to + k * W, load(own + k * W) * (load(to + k * W) - mean));
    }
    const vfloat d_raw0 = d_d0 / (1.0f + exp(-(b.raw0 + of.shift)));
    const vfloat d_raw1 = d_d1 / (1.0f + exp(-(b.raw1 + of.shift)));
    for (int64_t k = 0; k + 1 < bins; k++) {
      const vint before = vint{} + static_cast<int32_t>(k);
      vfloat d = select(before == b.chosen, d_raw1, vfloat{});
      d = select(before + 1 == b.chosen, d_raw0, d);
      store(work.raw + (2 * bins + k) * W, d);
    }
    store_rows(work.raw, count, of.numbers(), d_raw + first * of.numbers());
  }
}

}  // namespace jetkern::JETKERN_ISA
