#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "../select.h"
#include "torch.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace jetkern {

namespace {

// Whether there are tiles of bfloat16 and the kernel lets this process use them: their registers are
// so large that it has to be asked.
bool has_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24;
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILE_DATA
  unsigned a, b, c, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & BF16) && (d & TILE) &&
         syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return false;
#endif
}

Isa best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    if (!__builtin_cpu_supports("avx512bf16")) return Isa::avx512;
    return has_tiles() ? Isa::amx : Isa::avx512bf16;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2"))
    return Isa::avx2;
#endif
  return Isa::portable;
}

Isa choose() {
  const char* wish = std::getenv("JETKERN_CPU_ISA");
  if (!wish || !*wish) return best();
  const char* names[] = {"portable", "avx2", "avx512", "avx512bf16", "amx"};
  for (int64_t i = 0; i < 5; i++)
    if (names[i] == std::string(wish)) {
      if (static_cast<Isa>(i) > best())
        throw std::runtime_error(std::string("JETKERN_CPU_ISA=") + wish + ": this CPU has no such");
      return static_cast<Isa>(i);
    }
  throw std::runtime_error(std::string("JETKERN_CPU_ISA=") + wish +
                           ": choose one of portable, avx2, avx512, avx512bf16, amx");
}

int64_t cpu_isa() { return static_cast<int64_t>(isa()); }

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_FRAGMENT(jetkern, m) {
  m.def("cpu_isa() -> int");
  // What jetkern/ops/<op>/cpu.py calls with the table of its weights.
#define MLP "Tensor x, Tensor weights, int hidden, int out, int parts, bool bf16"
  m.def("cpu_mlp(" MLP ") -> Tensor");
  m.def("cpu_mlp_backward(Tensor d_out, " MLP ", bool want_x) -> (Tensor, Tensor)");
#define PAIRS "Tensor features, Tensor offsets, Tensor weights, Tensor widths"
  m.def("cpu_pair_mlp(" PAIRS ", int num_pairs) -> Tensor");
  m.def("cpu_pair_mlp_backward(Tensor d_out, " PAIRS ", bool want_features) -> (Tensor, Tensor)");
#define BLOCK                                                                                 \
  "Tensor x, Tensor offsets, Tensor weights, Tensor? bias, Tensor? particle_offsets, int heads, " \
  "int hidden, int parts, bool bf16"
  m.def("cpu_attention_block(" BLOCK ") -> Tensor");
  m.def("cpu_attention_block_backward(Tensor d_out, " BLOCK ") -> (Tensor, Tensor, Tensor)");
#define LOCAL                                                                                 \
  "Tensor particles, Tensor neighbours, Tensor weights, int width, int heads, int blocks, "   \
  "int embed_hidden, int embed_parts, int hidden, int parts, bool bf16"
  m.def("cpu_local_block(" LOCAL ") -> Tensor");
  m.def("cpu_local_block_backward(Tensor d_out, " LOCAL ", bool want_particles)"
        " -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(jetkern, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&jetkern::cpu_isa));
}
