// The instruction set that this process runs its kernels with, and the choice of a kernel by it.
#pragma once

#include <cstdint>

// Declares a kernel of csrc/cpu/kernels for every instruction set that the build compiles:
//   JETKERN_KERNEL(void, scale, (float* x, int64_t n));
// and JETKERN_SELECT(scale)(x, n) calls the right one.
#if defined(__x86_64__)
#define JETKERN_KERNEL(result, name, parameters)        \
  namespace jetkern::portable { result name parameters; } \
  namespace jetkern::avx2 { result name parameters; }     \
  namespace jetkern::avx512 { result name parameters; }   \
  namespace jetkern::avx512bf16 { result name parameters; } \
  namespace jetkern::amx { result name parameters; }      \
  static_assert(true)
#define JETKERN_SELECT(name)                                                \
  (jetkern::isa() == jetkern::Isa::amx ? &jetkern::amx::name                \
   : jetkern::isa() == jetkern::Isa::avx512bf16 ? &jetkern::avx512bf16::name  \
   : jetkern::isa() == jetkern::Isa::avx512 ? &jetkern::avx512::name        \
   : jetkern::isa() == jetkern::Isa::avx2 ? &jetkern::avx2::name            \
                                          : &jetkern::portable::name)
#else
#define JETKERN_KERNEL(result, name, parameters)        \
  namespace jetkern::portable { result name parameters; } \
  static_assert(true)
#define JETKERN_SELECT(name) (&jetkern::portable::name)
#endif

namespace jetkern {

enum class Isa : int64_t { portable, avx2, avx512, avx512bf16, amx };

// The best that the CPU and its operating system offer, or what JETKERN_CPU_ISA says, read once.
Isa isa();

}  // namespace jetkern
