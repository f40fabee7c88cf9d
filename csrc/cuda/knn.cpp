#include "knn.h"

#include "torch.h"

namespace jetkern {

// coordinates (T, C) float32 with dense rows, offsets (B + 1) int64 -> (T, k) int64.
Tensor knn(const Tensor& coordinates, const Tensor& offsets, int64_t k) {
  const int64_t total = coordinates.size(0), jets = offsets.size(0) - 1;
  if (coordinates.element_size() != sizeof(float) || (total && coordinates.stride(1) != 1))
    throw std::runtime_error("coordinates must be float32 with dense rows");
  if (k > INT32_MAX || jets > INT32_MAX) throw std::runtime_error("too many jets or neighbours");
  const int64_t* rows = data<int64_t>(offsets, "offsets");
  OnDevice device(coordinates);
  Tensor out = torch::stable::new_empty(offsets, {total, k});
  find_neighbours(static_cast<const float*>(coordinates.data_ptr()), coordinates.stride(0), total,
                  rows, jets, k, data<int64_t>(out, "out"), device.stream());
  return out;
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern_cuda, JETKERN_KEY, m) {
  m.impl("knn", TORCH_BOX(&jetkern::knn));
}
