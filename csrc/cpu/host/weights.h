// An op's weights as its registration takes them: the parameters themselves, wherever they lie.
#pragma once

#include <vector>

#include "../shapes.h"
#include "torch.h"

namespace jetkern {

// Adds the sizes of an op's weights to `to`, in the order of jetkern/ops/parameters.py.
inline void add_sizes(const MlpShape& s, std::vector<int64_t>& to) {
  to.push_back(s.hidden * s.in);
  if (s.bias1) to.push_back(s.hidden);
  if (s.norm) to.push_back(1);
  if (s.norm) to.push_back(s.hidden);
  to.push_back(s.out * s.hidden);
  if (s.bias2) to.push_back(s.out);
}
inline void add_sizes(const BlockShape& s, std::vector<int64_t>& to) {
  for (int64_t size : {int64_t{1}, s.width, 3 * s.width * s.width, s.width * s.width, int64_t{1},
                       s.width})
    to.push_back(size);
  add_sizes(s.mlp, to);
}
inline void add_sizes(const LocalShape& s, std::vector<int64_t>& to) {
  add_sizes(s.embed, to);
  for (int64_t b = 0; b < s.blocks; b++) add_sizes(s.block, to);
}

struct Weights {
  const float* const* data;
  int64_t size = 0;  // of all together

  // `table` (tensors, 2) int64: address and number of elements of each tensor, contiguous float32.
  template <class Shape>
  Weights(const Tensor& table, const Shape& shape) {
    std::vector<int64_t> sizes;
    add_sizes(shape, sizes);
    const int64_t* rows = jetkern::data<int64_t>(table, "weights");
    const int64_t count = static_cast<int64_t>(sizes.size());
    bool fit = table.size(0) == count;
    for (int64_t i = 0; fit && i < count; i++) {
      fit = rows[2 * i + 1] == sizes[i];
      size += sizes[i];
      addresses_.push_back(reinterpret_cast<const float*>(rows[2 * i]));
    }
    if (!fit) throw std::runtime_error("weights have the wrong sizes");
    data = addresses_.data();
  }
  Weights(const Weights&) = delete;
  Weights& operator=(const Weights&) = delete;

 private:
  std::vector<const float*> addresses_;
};

}  // namespace jetkern
