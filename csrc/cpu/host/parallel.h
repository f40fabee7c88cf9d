// Work shared among PyTorch's threads. What a chunk computes must depend on the problem only, never
// on the number of threads: then so do the results, to the last bit.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#include "../select.h"
#include "torch.h"

JETKERN_KERNEL(void, open_tiles, ());
JETKERN_KERNEL(void, close_tiles, ());

namespace jetkern {

// Sets up this thread's tile registers, where there are any, for as long as it lives. Not once for
// all: other libraries set them up in their own way.
struct Tiles {
  Tiles() { JETKERN_SELECT(open_tiles)(); }
  ~Tiles() { JETKERN_SELECT(close_tiles)(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// `bytes` of memory aligned to a cache line, not initialised. Large ones come from the system and go
// back to it at once: in the heap they would leave holes as large, which nothing else fills.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : bytes_(bytes), mapped_(bytes >= LARGE) {
    if (!bytes) return;
    if (!mapped_) {
      data_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    } else {
      data_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (data_ == MAP_FAILED) data_ = nullptr;
#if defined(MADV_HUGEPAGE)
      if (data_) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
    }
    if (!data_) throw std::bad_alloc();
  }
  ~Scratch() {
    if (mapped_)
      munmap(data_, bytes_);
    else
      std::free(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  float* floats() const { return static_cast<float*>(data_); }

 private:
  static constexpr int64_t LARGE = 4 << 20;

  void* data_ = nullptr;
  int64_t bytes_;
  bool mapped_;
};

// Calls work(chunk, scratch) for chunk = 0 .. chunks - 1, each thread taking the next one that is
// left. `scratch` is a thread's own buffer of `floats` floats, with arbitrary content.
template <class F>
void parallel(int64_t chunks, int64_t floats, const F& work) {
  if (chunks <= 0) return;
  std::atomic<int64_t> next{0};
  std::exception_ptr error;
  std::mutex guard;
  int64_t threads = number_of_threads();
  run_on_threads(threads < chunks ? threads : chunks, [&] {
    try {
      Scratch scratch(floats * sizeof(float));
      const Tiles tiles;
      for (int64_t chunk; (chunk = next++) < chunks;) work(chunk, scratch.floats());
    } catch (...) {
      std::lock_guard lock(guard);
      error = std::current_exception();
    }
  });
  if (error) std::rethrow_exception(error);
}

inline double square(double x) { return x * x; }

// Throws unless offsets (segments + 1) rise from 0 to `rows`.
inline void check_offsets(const int64_t* offsets, int64_t segments, int64_t rows) {
  bool rising = offsets[0] == 0 && offsets[segments] == rows;
  for (int64_t b = 0; b < segments; b++) rising &= offsets[b] <= offsets[b + 1];
  if (!rising) throw std::runtime_error("offsets must rise from 0 to the number of rows");
}

// Length of the longest segment.
inline int64_t longest(const int64_t* offsets, int64_t segments) {
  int64_t n = 0;
  for (int64_t b = 0; b < segments; b++)
    if (offsets[b + 1] - offsets[b] > n) n = offsets[b + 1] - offsets[b];
  return n;
}

// Splits items 0 .. n - 1 into at most `most` runs of about equal cost, a function of the costs
// only. Returns runs + 1 boundaries.
template <class Cost>
std::vector<int64_t> split(int64_t n, int64_t most, const Cost& cost) {
  double total = 0;
  for (int64_t i = 0; i < n; i++) total += cost(i);
  std::vector<int64_t> bounds{0};
  double done = 0;
  for (int64_t i = 0; i < n; i++) {
    done += cost(i);
    if (done * most >= total * bounds.size() && i + 1 < n) bounds.push_back(i + 1);
  }
  if (n) bounds.push_back(n);
  return bounds;
}

// to[i] = sum over p of parts[p * size + i], in the order of p, in double.
inline void reduce(const float* parts, int64_t count, int64_t size, float* to) {
  constexpr int64_t block = 1024;
  parallel((size + block - 1) / block, 2 * block, [&](int64_t chunk, float* scratch) {
    double* sum = reinterpret_cast<double*>(scratch);
    int64_t first = chunk * block, n = size - first < block ? size - first : block;
    for (int64_t i = 0; i < n; i++) sum[i] = 0;
    for (int64_t p = 0; p < count; p++)
      for (int64_t i = 0; i < n; i++) sum[i] += parts[p * size + first + i];
    for (int64_t i = 0; i < n; i++) to[first + i] = static_cast<float>(sum[i]);
  });
}

}  // namespace jetkern
