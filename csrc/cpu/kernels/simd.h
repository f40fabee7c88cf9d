// Vectors of float of the width that this compilation targets. Kernels (csrc/cpu/kernels/*.cpp) are
// compiled once per instruction set, each time into its own namespace JETKERN_ISA, so nothing
// compiled for a newer instruction set can be picked by the linker for an older machine.
// Kernel files must therefore not use templates or inline functions of the standard library.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#define JETKERN_VECTOR_BYTES 64
#elif defined(__AVX2__)
#include <immintrin.h>
#define JETKERN_VECTOR_BYTES 32
#else
#define JETKERN_VECTOR_BYTES 16
#endif

#define JETKERN_INLINE static inline __attribute__((always_inline))

namespace jetkern::JETKERN_ISA {

constexpr int64_t W = JETKERN_VECTOR_BYTES / sizeof(float);  // lanes of a vector

typedef float vfloat __attribute__((vector_size(JETKERN_VECTOR_BYTES)));
typedef double vdouble __attribute__((vector_size(2 * JETKERN_VECTOR_BYTES)));
typedef int32_t vint __attribute__((vector_size(JETKERN_VECTOR_BYTES)));
typedef float vfloat_unaligned
    __attribute__((vector_size(JETKERN_VECTOR_BYTES), aligned(4), may_alias));

JETKERN_INLINE vfloat load(const float* p) { return *reinterpret_cast<const vfloat_unaligned*>(p); }
JETKERN_INLINE void store(float* p, vfloat v) { *reinterpret_cast<vfloat_unaligned*>(p) = v; }
// x - 0 is x, of zeros with a sign, too: the compiler keeps the broadcast alone.
JETKERN_INLINE vfloat splat(float x) { return x - vfloat{}; }
// The 32 bits at p, a float or two bfloat16, in all lanes.
JETKERN_INLINE vfloat splat_at(const float* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return (vfloat)(vint{} + value);
}
JETKERN_INLINE vint bits(vfloat v) { return (vint)v; }
JETKERN_INLINE vfloat from_bits(vint v) { return (vfloat)v; }
JETKERN_INLINE vdouble to_double(vfloat v) { return __builtin_convertvector(v, vdouble); }
JETKERN_INLINE vfloat to_float(vint v) { return __builtin_convertvector(v, vfloat); }

// The first n lanes (0 <= n <= W) of p, zeros in the rest. Never touches memory past p + n.
JETKERN_INLINE vfloat load_first(const float* p, int64_t n) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
#else
  if (n == W) return load(p);
  vfloat v{};
  for (int64_t i = 0; i < n; i++) v[i] = p[i];
  return v;
#endif
}

JETKERN_INLINE void store_first(float* p, vfloat v, int64_t n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), (__m512)v);
#else
  if (n == W) return store(p, v);
  for (int64_t i = 0; i < n; i++) p[i] = v[i];
#endif
}

// Lanes first to last - 1 of p (0 <= first, last <= W), zeros in the rest; touches no others.
JETKERN_INLINE vfloat load_between(const float* p, int64_t first, int64_t last) {
#if defined(__AVX512F__)
  return (vfloat)_mm512_maskz_loadu_ps((__mmask16)(((1u << last) - 1u) & ~((1u << first) - 1u)), p);
#else
  if (first == 0 && last == W) return load(p);
  vfloat v{};
  for (int64_t i = first; i < last; i++) v[i] = p[i];
  return v;
#endif
}

JETKERN_INLINE void store_between(float* p, vfloat v, int64_t first, int64_t last) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)(((1u << last) - 1u) & ~((1u << first) - 1u)), (__m512)v);
#else
  if (first == 0 && last == W) return store(p, v);
  for (int64_t i = first; i < last; i++) p[i] = v[i];
#endif
}

JETKERN_INLINE vfloat select(vint mask, vfloat a, vfloat b) { return mask ? a : b; }
// Where either is not a number, the result is b.
JETKERN_INLINE vfloat min(vfloat a, vfloat b) { return a < b ? a : b; }
JETKERN_INLINE vfloat max(vfloat a, vfloat b) { return a > b ? a : b; }
JETKERN_INLINE vfloat abs(vfloat a) { return from_bits(bits(a) & 0x7fffffff); }

// v, rounded: keeps the compiler from fusing a product with the sum that follows.
JETKERN_INLINE vfloat rounded(vfloat v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
  return v;
}

// The lanes of v shifted down by n (a power of two), around the end.
template <int n>
JETKERN_INLINE vfloat rotate(vfloat v) {
#if JETKERN_VECTOR_BYTES == 64
  return __builtin_shufflevector(v, v, n % 16, (1 + n) % 16, (2 + n) % 16, (3 + n) % 16,
                                 (4 + n) % 16, (5 + n) % 16, (6 + n) % 16, (7 + n) % 16,
                                 (8 + n) % 16, (9 + n) % 16, (10 + n) % 16, (11 + n) % 16,
                                 (12 + n) % 16, (13 + n) % 16, (14 + n) % 16, (15 + n) % 16);
#elif JETKERN_VECTOR_BYTES == 32
  return __builtin_shufflevector(v, v, n % 8, (1 + n) % 8, (2 + n) % 8, (3 + n) % 8, (4 + n) % 8,
                                 (5 + n) % 8, (6 + n) % 8, (7 + n) % 8);
#else
  return __builtin_shufflevector(v, v, n % 4, (1 + n) % 4, (2 + n) % 4, (3 + n) % 4);
#endif
}

// Sum and largest of the lanes, folded in halves: always in the same order.
JETKERN_INLINE float sum(vfloat v) {
  if constexpr (W >= 16) v += rotate<8>(v);
  if constexpr (W >= 8) v += rotate<4>(v);
  v += rotate<2>(v);
  v += rotate<1>(v);
  return v[0];
}
JETKERN_INLINE double sum(const vdouble& v) {
  double total = 0.0;
  for (int64_t i = 0; i < W; i++) total += v[i];
  return total;
}
JETKERN_INLINE float largest(vfloat v) {
  if constexpr (W >= 16) v = max(v, rotate<8>(v));
  if constexpr (W >= 8) v = max(v, rotate<4>(v));
  v = max(v, rotate<2>(v));
  v = max(v, rotate<1>(v));
  return v[0];
}

// v, rounded to bfloat16 (to nearest even), still as floats.
JETKERN_INLINE vfloat bf16_round(vfloat v) {
  const vint b = bits(v), nearest = b + 0x7fff + ((b >> 16) & 1);
  return from_bits((v == v ? nearest : b | 0x400000) & ~0xffff);
}

// Factors in bfloat16, PER_LANE in a lane. Where the processor multiplies them they come in pairs,
// `low` in the low half and `high` in the high half, and `add_product` adds both products; elsewhere
// each is a float that is rounded, `low` alone, lest the halves be taken apart for each product.
#if defined(__AVX512BF16__)
constexpr int64_t PER_LANE = 2;

JETKERN_INLINE vfloat bf16_lanes(vfloat low, vfloat high) {
  alignas(64) static constexpr int16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                    21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                    11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (vfloat)_mm512_permutexvar_epi16(_mm512_load_si512(order), both);
}

// All of `low`, then all of `high`.
JETKERN_INLINE vfloat bf16_row(vfloat low, vfloat high) {
  return (vfloat)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
}

template <bool BF16>
JETKERN_INLINE vfloat add_product(vfloat sum, vfloat a, vfloat b) {
  if constexpr (BF16)
    return (vfloat)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  else
    return sum + a * b;
}
#else
constexpr int64_t PER_LANE = 1;

JETKERN_INLINE vfloat bf16_lanes(vfloat low, vfloat) { return bf16_round(low); }
JETKERN_INLINE vfloat bf16_row(vfloat low, vfloat) { return bf16_round(low); }

template <bool BF16>
JETKERN_INLINE vfloat add_product(vfloat sum, vfloat a, vfloat b) {
  return sum + a * b;
}
#endif

JETKERN_INLINE int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

}  // namespace jetkern::JETKERN_ISA
