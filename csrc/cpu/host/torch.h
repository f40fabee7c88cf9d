// The little of PyTorch that the ops use, all of it from its stable ABI (torch/csrc/stable): a
// library built once keeps working with later versions of PyTorch.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#ifndef TORCH_BOX  // PyTorch 2.9 has the stable library but not yet this wrapper
namespace jetkern {

template <auto function>
struct Boxed;

template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct Boxed<function> {
  template <size_t... I>
  static Result call(StableIValue* stack, std::index_sequence<I...>) {
    return function(to<std::remove_cv_t<std::remove_reference_t<Arguments>>>(stack[I])...);
  }
  static void run(StableIValue* stack, uint64_t, uint64_t) {
    constexpr auto arguments = std::index_sequence_for<Arguments...>{};
    if constexpr (std::is_void_v<Result>)
      call(stack, arguments);
    else
      put(stack, call(stack, arguments));
  }
  template <class T>
  static void put(StableIValue* stack, const T& one) {
    stack[0] = from(one);
  }
  template <class... T>
  static void put(StableIValue* stack, const std::tuple<T...>& several) {
    std::apply([&](const T&... one) { size_t i = 0; ((stack[i++] = from(one)), ...); }, several);
  }
};

}  // namespace jetkern
#define TORCH_BOX(function) &jetkern::Boxed<function>::run
#endif

namespace jetkern {

using torch::stable::Tensor;

// The number of threads that PyTorch is set to, and a function run on each of so many. Before
// PyTorch 2.10 the stable ABI had neither: fresh threads, as many as the machine has cores.
#if defined(TORCH_FEATURE_VERSION) && TORCH_FEATURE_VERSION >= TORCH_VERSION_2_10_0
inline int64_t number_of_threads() { return torch::stable::get_num_threads(); }

template <class F>
void run_on_threads(int64_t threads, const F& work) {
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; begin++) work();
  });
}
#else
inline int64_t number_of_threads() {
  int64_t cores = std::thread::hardware_concurrency();
  return cores ? cores : 1;
}

template <class F>
void run_on_threads(int64_t threads, const F& work) {
  std::vector<std::thread> others;
  for (int64_t i = 1; i < threads; i++) others.emplace_back(work);
  work();
  for (auto& other : others) other.join();
}
#endif

// The tensor's data. The Python side hands over contiguous tensors of the right type only; this
// guards against a call past it.
template <class T>
T* data(const Tensor& t, const char* name) {
  if (!t.is_contiguous() || t.element_size() != sizeof(T))
    throw std::runtime_error(std::string(name) + " must be contiguous and of the op's dtype");
  return static_cast<T*>(t.data_ptr());
}

// The same for a (T, H, d) tensor whose rows may lie apart, each of them dense.
template <class T>
T* rows(const Tensor& t, const char* name, int64_t& row) {
  const bool dense = t.size(0) == 0 || t.size(1) == 0 || t.size(2) == 0 ||
                     ((t.size(2) == 1 || t.stride(2) == 1) &&
                      (t.size(1) == 1 || t.stride(1) == t.size(2)));
  if (!dense || t.element_size() != sizeof(T))
    throw std::runtime_error(std::string(name) + " must have dense rows of the op's dtype");
  row = t.stride(0);
  return static_cast<T*>(t.data_ptr());
}

}  // namespace jetkern
