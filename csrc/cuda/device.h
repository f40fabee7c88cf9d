// What the kernels use of the GPU beyond CUDA's C++: tensor core products, conversions, launches.
//
// With JETKERN_EMULATE the same sources are compiled by a C++ compiler and run on a CPU, for tests:
// tests/csrc/emulate.h then defines these functions, and CUDA's own words, in terms of threads that
// take turns.
#pragma once

#include "types.h"

#ifdef JETKERN_EMULATE
#include "emulate.h"
#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define JETKERN_DEVICE __device__ __forceinline__

namespace jetkern {

// Two floats rounded to bf16, the first in the low half.
JETKERN_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

JETKERN_DEVICE uint32_t round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

// 2^x, to 2 units in the last place.
JETKERN_DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// c += a b on a warp's tensor core; fragments as in "Matrix Fragments for mma" of the PTX ISA.
// a (16, 16), b (16, 8), c (16, 8).
JETKERN_DEVICE void mma_bf16_k16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                 uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9},"
      " {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// a (16, 8), b (8, 8), c (16, 8).
JETKERN_DEVICE void mma_bf16_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6},"
      " {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(b0));
}

JETKERN_DEVICE void mma_tf32_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9},"
      " {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Queues kernel(arguments...) on a stream of the current GPU.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, void* stream,
            const Arguments&... arguments) {
  kernel<<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

}  // namespace jetkern

#endif

namespace jetkern {

JETKERN_DEVICE float to_float(float x) { return x; }
JETKERN_DEVICE float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }

template <class T>
JETKERN_DEVICE T from_float(float x) {
  if constexpr (sizeof(T) == 4)
    return x;
  else
    return bf16{static_cast<uint16_t>(pack_bf16(x, 0))};
}

}  // namespace jetkern
