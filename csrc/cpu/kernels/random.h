// Random bits as functions of counters, the same as those of jetkern/random.py.
#pragma once

#include "simd.h"

namespace jetkern::JETKERN_ISA {

typedef uint64_t vlong __attribute__((vector_size(JETKERN_VECTOR_BYTES)));

template <class Bits>
JETKERN_INLINE Bits mixed(Bits x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

// The random bits of a further counter behind those that `bits` came from.
template <class Bits>
JETKERN_INLINE Bits more_bits(Bits bits, Bits counter) {
  return mixed((bits ^ counter) + 0x9E3779B97F4A7C15u);
}
JETKERN_INLINE uint64_t more_bits(uint64_t bits, int64_t counter) {
  return more_bits(bits, static_cast<uint64_t>(counter));
}

// In each lane 23 random bits of the counters first, first + 1, ... behind `bits`.
JETKERN_INLINE vint draw(uint64_t bits, int64_t first) {
  vlong even;
  for (int64_t i = 0; i < W / 2; i++) even[i] = first + 2 * i;
  const vlong start = vlong{} + bits;
  const vlong low = more_bits(start, even) >> 41, high = more_bits(start, even + 1) >> 41;
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
  return (vint)(low | (high << 32));
#else
  return (vint)(high | (low << 32));
#endif
}

}  // namespace jetkern::JETKERN_ISA
