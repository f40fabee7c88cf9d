// Rising rational-quadratic functions, one for each value, from unconstrained numbers.
#pragma once

#include "select.h"

namespace jetkern {

// `raw` of a value is (3 bins - 1): widths and heights of the bins and the slopes at the knots
// between them. The function is the identity beyond -tail and tail; no bin has less than the share
// `least` of that, no knot a smaller slope; `shift` is where softplus gives 1 - least.
struct Spline {
  static constexpr int64_t MOST = 64;  // bins
  int64_t bins;
  float tail, least, shift;
  bool inverse;
  int64_t numbers() const { return 3 * bins - 1; }
};

// Floats of scratch, for vectors of up to 16 lanes.
inline int64_t spline_scratch(const Spline& of) { return 16 * (of.numbers() + 4 * of.bins); }

}  // namespace jetkern

// out (n, 2): the function and the logarithm of its slope.
JETKERN_KERNEL(void, spline_forward, (const Spline& of, const float* x, const float* raw, int64_t n,
                                      float* out, float* scratch));
// Of the function, not of its inverse.
JETKERN_KERNEL(void, spline_backward,
               (const Spline& of, const float* d_out, const float* x, const float* raw, int64_t n,
                float* d_x, float* d_raw, float* scratch));
