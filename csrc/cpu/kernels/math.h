// Elementary functions on vectors of float, within about 2 units in the last place of the result
// (gelu: of max(|x|, 1)). Polynomials and rationals are our own minimax fits, error in the comments.
#pragma once

#include "simd.h"

namespace jetkern::JETKERN_ISA {

// exp(x) for x <= 88; 0 below -87.3 (the reference's subnormals), also for -infinity.
JETKERN_INLINE vfloat exp(vfloat x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  vfloat clamped = max(splat(-87.33654f), x);
  vfloat shifted = clamped * 1.44269504f + magic;
  vfloat n = shifted - magic;
  vfloat r = clamped - n * 0.693145752f;  // ln 2 in two parts, the first exact when times n
  r = r - n * 1.42860677e-6f;
  vfloat p = splat(1.381461113e-3f);  // relative error 3e-9 on |r| <= ln(2) / 2
  p = p * r + 8.368710515e-3f;
  p = p * r + 4.166838744e-2f;
  p = p * r + 1.666652068e-1f;
  p = p * r + 4.999999345e-1f;
  p = p * (r * r) + r + 1.0f;
  return select(x < -87.33654f, vfloat{}, from_bits(bits(p) + (bits(shifted) << 23)));
}

// tanh(x) = x P(x^2) / Q(x^2) up to |x| = 9, where it is 1 in float (relative error 2e-8).
JETKERN_INLINE vfloat tanh(vfloat x) {
  x = max(splat(-9.01f), min(splat(9.01f), x));
  vfloat s = x * x;
  vfloat p = splat(1.335494714e-8f);
  p = p * s + 2.060932974e-5f;
  p = p * s + 3.495605052e-3f;
  p = p * s + 1.338104057e-1f;
  p = p * s + 9.999999797e-1f;
  vfloat q = splat(7.776687256e-7f);
  q = q * s + 3.285661145e-4f;
  q = q * s + 2.587704864e-2f;
  q = q * s + 4.671435620e-1f;
  q = q * s + 1.0f;
  return x * p / q;
}

// erf(x / sqrt 2) = x P(x^2) / Q(x^2) up to |x| = 5.58, where it is 1 (relative error 2e-8).
JETKERN_INLINE vfloat erf_over_sqrt2(vfloat x) {
  x = max(splat(-5.586f), min(splat(5.586f), x));
  vfloat s = x * x;
  vfloat p = splat(4.477647833e-8f);
  p = p * s + 1.258142714e-5f;
  p = p * s + 3.365124619e-4f;
  p = p * s + 9.346637582e-3f;
  p = p * s + 6.771447685e-2f;
  p = p * s + 7.978845445e-1f;
  vfloat q = splat(1.182383100e-6f);
  q = q * s + 7.315804065e-5f;
  q = q * s + 1.881645128e-3f;
  q = q * s + 2.863743022e-2f;
  q = q * s + 2.515338504e-1f;
  q = q * s + 1.0f;
  return x * p / q;
}

// The exact GELU, x Phi(x) with Phi the cumulative normal distribution.
JETKERN_INLINE vfloat gelu(vfloat x) {
  vfloat half = x * 0.5f;
  return half * erf_over_sqrt2(x) + half;
}

// gelu(x) and its derivative Phi(x) + x phi(x), sharing one exponential:
// Phi(-|x|) = exp(-x^2 / 2) R(t), t = 1 / (1 + 0.3 |x|), R of degree 7 (absolute error 5e-9).
JETKERN_INLINE vfloat gelu(vfloat x, vfloat& slope) {
  vfloat a = abs(x);
  vfloat t = 1.0f / (a * 0.3f + 1.0f);
  vfloat e = exp(x * x * -0.5f);
  vfloat r = splat(3.885042051e-2f);
  r = r * t - 2.546664639e-1f;
  r = r * t + 5.505031605e-1f;
  r = r * t - 3.523918015e-1f;
  r = r * t + 3.369338898e-1f;
  r = r * t + 5.058053423e-2f;
  r = r * t + 1.309409147e-1f;
  r = r * t - 7.506593185e-4f;
  vfloat below = e * r;
  vfloat phi = select(x > 0.0f, 1.0f - below, below);
  slope = x * e * 0.398942280f + phi;
  return x * phi;
}

// ln(x) for x > 0, subnormals and infinity included; 0 for x <= 0 and NaN (the rule for pair
// features).
JETKERN_INLINE vfloat log_or_zero(vfloat x) {
  vint tiny = x < 1.17549435e-38f;
  vfloat scaled = select(tiny, x * 8388608.0f, x);
  vint exponent = (bits(scaled) - 0x3f3504f3) >> 23;  // mantissa in [sqrt(1/2), sqrt 2)
  vfloat f = from_bits(bits(scaled) - (exponent << 23)) - 1.0f;
  vfloat n = to_float(exponent) + select(tiny, splat(-23.0f), vfloat{});
  vfloat p = splat(6.746602428e-2f);  // relative error 7e-10
  p = p * f - 1.167565165e-1f;
  p = p * f + 1.188818002e-1f;
  p = p * f - 1.240559017e-1f;
  p = p * f + 1.421955003e-1f;
  p = p * f - 1.666799570e-1f;
  p = p * f + 2.000211877e-1f;
  p = p * f - 2.500000960e-1f;
  p = p * f + 3.333331260e-1f;
  vfloat s = f * f;
  vfloat ln = n * 1.42860677e-6f + p * s * f;
  ln = ln - 0.5f * s + f + n * 0.693145752f;
  ln = select(x > 3.40282347e38f, x, ln);
  return select(x > 0.0f, ln, vfloat{});
}

// sinh(x), accurate for small x.
JETKERN_INLINE vfloat sinh(vfloat x) {
  vfloat a = abs(x);
  vfloat s = x * x;
  vfloat p = splat(2.816955328e-6f);  // relative error 5e-11 on |x| <= 1
  p = p * s + 1.983615914e-4f;
  p = p * s + 8.333350061e-3f;
  p = p * s + 1.666666650e-1f;
  p = p * s * a + a;
  vfloat e = exp(min(splat(88.0f), a));
  p = select(a > 1.0f, 0.5f * e - 0.5f / e, p);
  return select(x < 0.0f, -p, p);
}

// sin(x) for |x| up to about 1e4.
JETKERN_INLINE vfloat sin(vfloat x) {
  const float magic = 12582912.0f;
  vfloat shifted = x * 0.318309886f + magic;
  vfloat n = shifted - magic;
  vfloat r = x - n * 3.140625f;  // pi in three parts
  r = r - n * 9.67025757e-4f;
  r = r - n * 6.27832957e-7f;
  vfloat s = r * r;
  vfloat p = splat(-2.388882945e-8f);  // relative error 2e-11 on |r| <= pi / 2
  p = p * s + 2.752538016e-6f;
  p = p * s - 1.984086813e-4f;
  p = p * s + 8.333331108e-3f;
  p = p * s - 1.666666663e-1f;
  return from_bits(bits(p * s * r + r) ^ (bits(shifted) << 31));  // minus for odd n
}

}  // namespace jetkern::JETKERN_ISA
