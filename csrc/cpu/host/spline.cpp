#include "../spline.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "parallel.h"

namespace jetkern {

namespace {

constexpr int64_t SOME = 512;  // values of a chunk of work

Spline spline_of(const Tensor& x, const Tensor& raw, double tail, double least, bool inverse) {
  const int64_t numbers = raw.size(1), bins = (numbers + 1) / 3;
  if (numbers != 3 * bins - 1 || bins > Spline::MOST || raw.size(0) != x.size(0))
    throw std::runtime_error("x and raw do not fit each other");
  return {bins, static_cast<float>(tail), static_cast<float>(least),
          static_cast<float>(std::log(std::expm1(1.0 - least))), inverse};
}

template <class F>
void in_chunks(const Spline& of, int64_t n, const F& work) {
  parallel((n + SOME - 1) / SOME, spline_scratch(of), [&](int64_t c, float* scratch) {
    work(c * SOME, std::min(SOME, n - c * SOME), scratch);
  });
}

}  // namespace

// x (N), raw (N, 3 bins - 1) -> (N, 2)
Tensor spline(const Tensor& x, const Tensor& raw, double tail, double least, bool inverse) {
  const Spline of = spline_of(x, raw, tail, least, inverse);
  Tensor out = torch::stable::new_empty(x, {x.size(0), 2});
  const float *values = data<float>(x, "x"), *numbers = data<float>(raw, "raw");
  float* to = data<float>(out, "out");
  auto run = JETKERN_SELECT(spline_forward);
  in_chunks(of, x.size(0), [&](int64_t first, int64_t n, float* scratch) {
    run(of, values + first, numbers + first * of.numbers(), n, to + 2 * first, scratch);
  });
  return out;
}

std::tuple<Tensor, Tensor> spline_backward(const Tensor& d_out, const Tensor& x, const Tensor& raw,
                                           double tail, double least, bool inverse) {
  const Spline of = spline_of(x, raw, tail, least, inverse);
  if (inverse) throw std::runtime_error("the inverse has no gradient here");
  Tensor d_x = torch::stable::new_empty(x, {x.size(0)});
  Tensor d_raw = torch::stable::new_empty(raw, {raw.size(0), raw.size(1)});
  const float *values = data<float>(x, "x"), *numbers = data<float>(raw, "raw");
  const float* slopes = data<float>(d_out, "d_out");
  float *to = data<float>(d_x, "d_x"), *to_raw = data<float>(d_raw, "d_raw");
  auto run = JETKERN_SELECT(spline_backward);
  in_chunks(of, x.size(0), [&](int64_t first, int64_t n, float* scratch) {
    run(of, slopes + 2 * first, values + first, numbers + first * of.numbers(), n, to + first,
        to_raw + first * of.numbers(), scratch);
  });
  return {d_x, d_raw};
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("spline", TORCH_BOX(&jetkern::spline));
  m.impl("spline_backward", TORCH_BOX(&jetkern::spline_backward));
}
