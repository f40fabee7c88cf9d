// A warp's products of 16 x 8U tiles, at a precision.
//
// A product sums over some index k. In the fragments that the tensor core takes, lane 4g + t holds
// elements of rows g and g + 8 of the left factor, of column g of the right one, and of rows g and
// g + 8, columns 2t and 2t + 1 of the result. Which k stands in which place is free as long as both
// factors agree. Here a lane always holds pairs of neighbours in k, for which a row in memory can be
// read in long words, and the result of one product is in the right lanes to be the left factor of
// the next.
#pragma once

#include "device.h"

namespace jetkern {

// Two neighbours in k.
template <Precision P>
struct Pair;
template <>
struct Pair<Precision::bf16> {
  uint32_t both;
};
template <>
struct Pair<Precision::tf32> {
  uint32_t x, y;
};
template <>
struct Pair<Precision::ieee> {  // x = big + small to 2^-22
  Pair<Precision::tf32> big, small;
};

JETKERN_DEVICE void set(Pair<Precision::bf16>& pair, float x, float y) {
  pair.both = pack_bf16(x, y);
}
JETKERN_DEVICE void set(Pair<Precision::bf16>& pair, bf16 x, bf16 y) {
  pair.both = uint32_t(x.bits) | uint32_t(y.bits) << 16;
}
JETKERN_DEVICE void set(Pair<Precision::tf32>& pair, float x, float y) {
  pair.x = round_to_tf32(x);
  pair.y = round_to_tf32(y);
}
JETKERN_DEVICE void set(Pair<Precision::tf32>& pair, bf16 x, bf16 y) {
  pair.x = uint32_t(x.bits) << 16;
  pair.y = uint32_t(y.bits) << 16;
}
JETKERN_DEVICE void set(Pair<Precision::ieee>& pair, float x, float y) {
  set(pair.big, x, y);
  set(pair.small, x - __uint_as_float(pair.big.x), y - __uint_as_float(pair.big.y));
}
JETKERN_DEVICE void set(Pair<Precision::ieee>& pair, bf16 x, bf16 y) {
  set(pair.big, x, y);
  pair.small = {0, 0};
}

// 16 rows of a left factor, 8 in k.
template <Precision P>
struct Left {
  Pair<P> top, bottom;  // rows g and g + 8
};

// The left factor that a 16 x 8 result is.
template <Precision P>
JETKERN_DEVICE Left<P> left(const float (&c)[4]) {
  Left<P> a;
  set(a.top, c[0], c[1]);
  set(a.bottom, c[2], c[3]);
  return a;
}

JETKERN_DEVICE void multiply_tf32(float (&c)[4], const Pair<Precision::tf32>& top,
                                  const Pair<Precision::tf32>& bottom,
                                  const Pair<Precision::tf32>& b) {
  mma_tf32_k8(c, top.x, bottom.x, top.y, bottom.y, b.x, b.y);
}

// c (16, 8) += a b over 8 N in k.
template <Precision P, int N>
JETKERN_DEVICE void multiply(float (&c)[4], const Left<P> (&a)[N], const Pair<P> (&b)[N]) {
  if constexpr (P == Precision::bf16) {
#pragma unroll
    for (int i = 0; i + 1 < N; i += 2)
      mma_bf16_k16(c, a[i].top.both, a[i].bottom.both, a[i + 1].top.both, a[i + 1].bottom.both,
                   b[i].both, b[i + 1].both);
    if constexpr (N % 2)
      mma_bf16_k8(c, a[N - 1].top.both, a[N - 1].bottom.both, b[N - 1].both);
  } else if constexpr (P == Precision::tf32) {
#pragma unroll
    for (int i = 0; i < N; i++) multiply_tf32(c, a[i].top, a[i].bottom, b[i]);
  } else {
    // Tensor cores truncate sums: the small terms come first, and what is long is summed outside.
    float part[4] = {};
#pragma unroll
    for (int i = 0; i < N; i++) {
      multiply_tf32(part, a[i].top.small, a[i].bottom.small, b[i].big);
      multiply_tf32(part, a[i].top.big, a[i].bottom.big, b[i].small);
    }
#pragma unroll
    for (int i = 0; i < N; i++) multiply_tf32(part, a[i].top.big, a[i].bottom.big, b[i].big);
#pragma unroll
    for (int i = 0; i < 4; i++) c[i] += part[i];
  }
}

template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Vector {
  T x[N];
};

template <int N, class T>
JETKERN_DEVICE Vector<T, N> load(const T* from, bool exists) {
  Vector<T, N> vector = {};
  if (exists) vector = *reinterpret_cast<const Vector<T, N>*>(from);
  return vector;
}

template <int N, class T>
JETKERN_DEVICE void store(T* to, const Vector<T, N>& vector) {
  *reinterpret_cast<Vector<T, N>*>(to) = vector;
}

// Tokens of one jet and head in memory: rows of 8 U dense elements, `row` apart.
template <class T, int U>
struct Tokens {
  const T* first;
  int64_t row;
  int count;

  JETKERN_DEVICE const T* at(int token) const { return first + token * row; }
};

// Tokens begin to begin + 16 as the rows of a left factor, k being their 8 U elements; those beyond
// the last are zero. Place (u, 2t + i) of k is element 2 (U t + u) + i.
template <Precision P, class T, int U>
JETKERN_DEVICE void load_left(Left<P> (&a)[U], const Tokens<T, U>& tokens, int begin) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int top = begin + g, bottom = top + 8;
  auto x = load<2 * U>(tokens.at(top) + 2 * U * t, top < tokens.count);
  auto y = load<2 * U>(tokens.at(bottom) + 2 * U * t, bottom < tokens.count);
#pragma unroll
  for (int u = 0; u < U; u++) {
    set(a[u].top, x.x[2 * u], x.x[2 * u + 1]);
    set(a[u].bottom, y.x[2 * u], y.x[2 * u + 1]);
  }
}

// Tokens begin to begin + 8 as the columns of a right factor, k being their elements, as above.
template <Precision P, class T, int U>
JETKERN_DEVICE void load_right(Pair<P> (&b)[U], const Tokens<T, U>& tokens, int begin) {
  const int lane = threadIdx.x % 32, token = begin + lane / 4;
  auto x = load<2 * U>(tokens.at(token) + 2 * U * (lane % 4), token < tokens.count);
#pragma unroll
  for (int u = 0; u < U; u++) set(b[u], x.x[2 * u], x.x[2 * u + 1]);
}

// c[u] (16, 8) += a b_u, k being the tokens begin to begin + 16: column g of b_u holds their elements
// U g + u.
template <Precision P, class T, int U>
JETKERN_DEVICE void multiply_sum(float (&c)[U][4], const Left<P> (&a)[2],
                                 const Tokens<T, U>& tokens, int begin) {
  const int lane = threadIdx.x % 32, column = U * (lane / 4);
  Pair<P> b[U][2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int token = begin + 8 * half + 2 * (lane % 4);
    auto x = load<U>(tokens.at(token) + column, token < tokens.count);
    auto y = load<U>(tokens.at(token + 1) + column, token + 1 < tokens.count);
#pragma unroll
    for (int u = 0; u < U; u++) set(b[u][half], x.x[u], y.x[u]);
  }
#pragma unroll
  for (int u = 0; u < U; u++) multiply(c[u], a, b[u]);
}

// Writes what multiply_sum made, times a factor for each of the lane's two rows, to tokens begin to
// begin + 16 of contiguous memory.
template <class T, int U>
JETKERN_DEVICE void store_rows(T* first, int64_t row, int count, int begin, const float (&c)[U][4],
                               float top, float bottom) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int token = begin + g + 8 * half;
    Vector<T, 2 * U> vector;
#pragma unroll
    for (int i = 0; i < 2 * U; i++)
      vector.x[i] = from_float<T>(c[i % U][2 * half + i / U] * (half ? bottom : top));
    if (token < count) store<2 * U>(first + token * row + 2 * U * t, vector);
  }
}

}  // namespace jetkern
