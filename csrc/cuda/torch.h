// What the CUDA ops use of PyTorch. Neither CUDA's headers nor its libraries are needed here: the
// library loads on machines without a GPU too.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "../cpu/host/torch.h"

#ifdef JETKERN_EMULATE
#define JETKERN_KEY CPU
#else
#include <dlfcn.h>
#define JETKERN_KEY CUDA
#endif

namespace jetkern {

// The GPU of a tensor made the current one, and its current stream.
class OnDevice {
#ifdef JETKERN_EMULATE
 public:
  explicit OnDevice(const Tensor&) {}
  void* stream() const { return nullptr; }
#else
 public:
  explicit OnDevice(const Tensor& t) : device_(t.get_device()), guard_(device_) {}

  void* stream() const {
    using Get = AOTITorchError (*)(int32_t, void**);
    // The tensor is on a GPU, so PyTorch's CUDA library is loaded already.
    static const Get get = [] {
      void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
      void* found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
      return reinterpret_cast<Get>(found);
    }();
    void* stream = nullptr;
    if (!get || get(device_, &stream))
      throw std::runtime_error("PyTorch's CUDA library does not tell its current stream");
    return stream;
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
#endif
};

}  // namespace jetkern
