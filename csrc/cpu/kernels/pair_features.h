// Features of particle pairs in lanes; the specification is in jetkern/ops/pair_features.
#pragma once

#include "math.h"

namespace jetkern::JETKERN_ISA {

struct PairFeatures {
  vfloat ln_m2, ln_r, ln_kt;
};

// cosh eta - cos phi, in a form that does not cancel for small angles.
JETKERN_INLINE vfloat pair_angle(vfloat eta, vfloat phi) {
  const vfloat a = sinh(0.5f * eta), b = sin(0.5f * phi);
  return 2.0f * a * a + 2.0f * b * b;
}

// From the differences in eta and phi, and the sum and the smaller of both ln pT.
JETKERN_INLINE PairFeatures pair_features(vfloat eta, vfloat phi, vfloat sum_ln_pt,
                                          vfloat min_ln_pt) {
  const vfloat angle = pair_angle(eta, phi), square = eta * eta + phi * phi;
  const vfloat ln_r = 0.5f * log_or_zero(square);
  const vfloat ln_m2 = 0.693147181f + sum_ln_pt + log_or_zero(angle);
  return {select(angle > 0.0f, ln_m2, vfloat{}), ln_r,
          select(square > 0.0f, min_ln_pt + ln_r, vfloat{})};
}

struct PairSlopes {
  vfloat eta, phi, sum_ln_pt, min_ln_pt;
};

// Gradients of what the features come from, given those of the features.
JETKERN_INLINE PairSlopes pair_slopes(vfloat eta, vfloat phi, const PairFeatures& d) {
  const vfloat angle = pair_angle(eta, phi), square = eta * eta + phi * phi;
  const vint apart = angle > 0.0f, away = square > 0.0f;
  const vfloat d_r = d.ln_r + d.ln_kt;
  return {select(apart, d.ln_m2 * (sinh(eta) / angle), vfloat{}) +
              select(away, d_r * (eta / square), vfloat{}),
          select(apart, d.ln_m2 * (sin(phi) / angle), vfloat{}) +
              select(away, d_r * (phi / square), vfloat{}),
          select(apart, d.ln_m2, vfloat{}), select(away, d.ln_kt, vfloat{})};
}

// The part of min(a, b)'s gradient that a takes, given a - b: half where they are equal.
JETKERN_INLINE vfloat share_of_first(vfloat difference) {
  const vfloat half = select(difference == 0.0f, splat(0.5f), vfloat{});
  return select(difference < 0.0f, splat(1.0f), half);
}

}  // namespace jetkern::JETKERN_ISA
