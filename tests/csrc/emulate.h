// Runs CUDA kernels on a CPU, for tests: included by csrc/cuda/device.h with JETKERN_EMULATE.
//
// A block's threads are fibers that take turns: each runs until it waits for its warp or its block,
// in an order that JETKERN_EMULATE_ORDER (an integer) shuffles, so that a missing barrier changes
// results. Blocks run one after the other. Every operation of a warp checks that all 32 lanes came
// to that same operation, a barrier of the block that all of its threads which have not ended came
// to it; anything else ends the process with a message.
//
// Products of tensor cores follow the fragment layouts of the PTX ISA (9.0), section 9.7.14.5
// "Matrix multiply-accumulate operation using mma instruction". Their sums are truncated to float32
// as the hardware does, which no document promises but Fasi et al., "Numerical behavior of NVIDIA
// tensor cores" (PeerJ Comput. Sci. 2021) found.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#define JETKERN_DEVICE inline
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace jetkern {

using std::max;
using std::min;

namespace emulated {

constexpr size_t STACK = 256 << 10;
constexpr int LANES = 32, BOX = 64;  // BOX: bytes that a lane can show to its warp

enum class State { ready, at_warp, at_block, ended };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = State::ready;
  const char* operation = nullptr;
  int exchanges = 0;
};

struct Warp {
  char boxes[2][LANES][BOX];  // in turn, so that a lane may run ahead while others still read
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  ucontext_t scheduler;
  int running = -1;
  std::function<void()> kernel;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
};

inline Block* block = nullptr;

[[noreturn]] inline void fail(const char* message, const char* operation) {
  std::fprintf(stderr, "emulated kernel: %s (%s), block (%u, %u), thread %d\n", message, operation,
               blockIdx.x, blockIdx.y, block ? block->running : -1);
  std::abort();
}

// AddressSanitizer must be told when the stack changes.
inline void leave([[maybe_unused]] void** fake, [[maybe_unused]] const void* stack,
                  [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(fake, stack, size);
#endif
}
inline void arrive([[maybe_unused]] void* fake, [[maybe_unused]] const void** stack,
                   [[maybe_unused]] size_t* size) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake, stack, size);
#endif
}

inline void wait(State state, const char* operation) {
  Block& b = *block;
  Thread& me = b.threads[b.running];
  me.state = state;
  me.operation = operation;
  void* fake = nullptr;
  leave(&fake, b.scheduler_stack, b.scheduler_size);
  swapcontext(&me.context, &b.scheduler);
  arrive(fake, &b.scheduler_stack, &b.scheduler_size);
}

inline void run_thread() {
  Block& b = *block;
  arrive(nullptr, &b.scheduler_stack, &b.scheduler_size);
  b.kernel();
  b.threads[b.running].state = State::ended;
  leave(nullptr, b.scheduler_stack, b.scheduler_size);
  swapcontext(&b.threads[b.running].context, &b.scheduler);
}

// Lets threads go on that wait for what has happened by now. Whether there were any.
inline bool release(Block& b) {
  bool released = false;
  const int count = static_cast<int>(b.threads.size());
  for (int first = 0; first < count; first += LANES) {
    int waiting = 0;
    for (int i = first; i < first + LANES; i++) waiting += b.threads[i].state == State::at_warp;
    if (waiting != LANES) continue;
    for (int i = first; i < first + LANES; i++) {
      if (std::strcmp(b.threads[i].operation, b.threads[first].operation))
        fail("the lanes of a warp are at different operations", b.threads[i].operation);
      b.threads[i].state = State::ready;
    }
    released = true;
  }
  if (released) return true;
  for (const Thread& t : b.threads)
    if (t.state != State::at_block && t.state != State::ended) return false;
  for (Thread& t : b.threads)
    if (t.state == State::at_block) {
      t.state = State::ready;
      released = true;
    }
  return released;
}

inline void run_block(Block& b, const std::vector<int>& order) {
  for (Thread& t : b.threads) {
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = STACK;
    t.context.uc_link = nullptr;
    makecontext(&t.context, run_thread, 0);
    t.state = State::ready;
  }
  do {
    for (int i : order) {
      Thread& t = b.threads[i];
      if (t.state != State::ready) continue;
      b.running = i;
      threadIdx.x = static_cast<unsigned>(i);
      void* fake = nullptr;
      leave(&fake, t.stack.get(), STACK);
      swapcontext(&b.scheduler, &t.context);
      arrive(fake, nullptr, nullptr);
    }
  } while (release(b));
  for (const Thread& t : b.threads)
    if (t.state != State::ended) fail("threads wait for others that never come", t.operation);
}

// Shows `mine` to the lanes of the warp and returns what all of them show.
template <class T>
const char (*exchange(const T& mine, const char* operation))[BOX] {
  static_assert(sizeof(T) <= BOX && std::is_trivially_copyable_v<T>);
  Block& b = *block;
  const int me = b.running;
  auto& boxes = b.warps[me / LANES].boxes[b.threads[me].exchanges++ % 2];
  std::memcpy(boxes[me % LANES], &mine, sizeof(T));
  wait(State::at_warp, operation);
  return boxes;
}

template <class T>
T read(const char (&box)[BOX]) {
  T value;
  std::memcpy(&value, box, sizeof(T));
  return value;
}

struct Fragments {
  uint32_t a[4], b[2];
};

inline float half(uint32_t both, int which) {
  uint32_t bits = which ? both & 0xFFFF0000 : both << 16;
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float tf32(uint32_t bits) {
  bits &= ~uint32_t(0x1FFF);  // the hardware ignores the low bits
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// c (16, 8) += a (16, depth) b (depth, 8). Where an element of a or b is: lane, register, half.
template <class A, class B>
void product(float (&c)[4], const char (*boxes)[BOX], int depth, const A& a, const B& b) {
  const int lane = block->running % LANES;
  for (int i = 0; i < 4; i++) {
    int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
    double sum = c[i];
    for (int k = 0; k < depth; k++) sum += double(a(boxes, row, k)) * double(b(boxes, k, column));
    float rounded = static_cast<float>(sum);
    if (std::isfinite(rounded) && std::fabs(double(rounded)) > std::fabs(sum))
      rounded = std::nextafter(rounded, 0.0f);
    c[i] = rounded;
  }
}

}  // namespace emulated

// "Matrix Fragments for mma.m16n8k16 with floating point type": a0..a7 (two to a register) in row
// groupID for a0, a1, a4, a5, else groupID + 8; column 2 threadID_in_group + (i & 1), + 8 for i >= 4.
// b0..b3 in row 2 threadID_in_group + (i & 1), + 8 for i >= 2; column groupID.
inline void mma_bf16_k16(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                         uint32_t b0, uint32_t b1) {
  using namespace emulated;
  auto boxes = exchange(Fragments{{a0, a1, a2, a3}, {b0, b1}}, "mma m16n8k16 bf16");
  product(
      c, boxes, 16,
      [](const char(*all)[BOX], int row, int k) {
        int lane = row % 8 * 4 + k % 8 / 2, which = (row >= 8) + 2 * (k >= 8);
        return half(read<Fragments>(all[lane]).a[which], k % 2);
      },
      [](const char(*all)[BOX], int k, int column) {
        return half(read<Fragments>(all[column * 4 + k % 8 / 2]).b[k >= 8], k % 2);
      });
}

// "Matrix Fragments for mma.m16n8k8", .bf16: a0, a1 in row groupID, a2, a3 in groupID + 8; column
// 2 threadID_in_group + (i & 1). b0, b1 in row 2 threadID_in_group + i; column groupID.
inline void mma_bf16_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
  using namespace emulated;
  auto boxes = exchange(Fragments{{a0, a1, 0, 0}, {b0, 0}}, "mma m16n8k8 bf16");
  product(
      c, boxes, 8,
      [](const char(*all)[BOX], int row, int k) {
        return half(read<Fragments>(all[row % 8 * 4 + k / 2]).a[row >= 8], k % 2);
      },
      [](const char(*all)[BOX], int k, int column) {
        return half(read<Fragments>(all[column * 4 + k / 2]).b[0], k % 2);
      });
}

// "Matrix Fragments for mma.m16n8k8", .tf32: a0, a2 in row groupID, a1, a3 in groupID + 8; a0, a1 in
// column threadID_in_group, a2, a3 in threadID_in_group + 4. b0 in row threadID_in_group, b1 in
// threadID_in_group + 4; column groupID.
inline void mma_tf32_k8(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                        uint32_t b0, uint32_t b1) {
  using namespace emulated;
  auto boxes = exchange(Fragments{{a0, a1, a2, a3}, {b0, b1}}, "mma m16n8k8 tf32");
  product(
      c, boxes, 8,
      [](const char(*all)[BOX], int row, int k) {
        return tf32(read<Fragments>(all[row % 8 * 4 + k % 4]).a[(row >= 8) + 2 * (k >= 4)]);
      },
      [](const char(*all)[BOX], int k, int column) {
        return tf32(read<Fragments>(all[column * 4 + k % 4]).b[k >= 4]);
      });
}

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline void __syncthreads() { emulated::wait(emulated::State::at_block, "__syncthreads"); }

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
  int other = emulated::block->running % emulated::LANES ^ lanes;
  return emulated::read<T>(emulated::exchange(value, "__shfl_xor_sync")[other]);
}

inline uint32_t pack_bf16(float low, float high) {
  auto round = [](float x) {  // to nearest, ties to even
    uint32_t bits = __float_as_uint(x);
    if (std::isnan(x)) return uint32_t(0x7FFF);
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}
inline uint32_t round_to_tf32(float x) {  // to nearest, ties away from zero
  uint32_t bits = __float_as_uint(x);
  return std::isfinite(x) ? (bits + 0x1000) & ~uint32_t(0x1FFF) : bits;
}
inline float exp2_fast(float x) { return std::exp2(x); }

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, void*,
            const Arguments&... arguments) {
  using namespace emulated;
  if (grid.x > INT32_MAX || grid.y > 65535 || grid.z > 65535 || !grid.x || !grid.y || !threads ||
      threads > 1024 || threads % LANES)
    fail("a launch that CUDA refuses, or threads that are not whole warps", "launch");
  static std::vector<std::unique_ptr<char[]>> stacks;
  while (stacks.size() < threads) stacks.push_back(std::make_unique<char[]>(STACK));
  Block b;
  b.threads.resize(threads);
  b.warps.resize(threads / LANES);
  for (unsigned i = 0; i < threads; i++) b.threads[i].stack = std::move(stacks[i]);
  b.kernel = [&] { kernel(arguments...); };
  std::vector<int> order(threads);
  std::iota(order.begin(), order.end(), 0);
  if (const char* seed = std::getenv("JETKERN_EMULATE_ORDER"))
    std::shuffle(order.begin(), order.end(), std::mt19937(std::atoi(seed)));
  block = &b;
  gridDim = grid;
  blockDim = dim3(threads);
  for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
    for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block(b, order);
  block = nullptr;
  for (unsigned i = 0; i < threads; i++) stacks[i] = std::move(b.threads[i].stack);
}

}  // namespace jetkern
