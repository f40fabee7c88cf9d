// Shapes of the composite ops' weights, as the registrations and the kernels of every instruction
// set share them. Weights come as one flat array, in the order of jetkern/ops/parameters.py.
#pragma once

#include <cstdint>

namespace jetkern {

// fc2(norm(gelu(fc1(x)))), in -> hidden -> out.
struct MlpShape {
  int64_t in, hidden, out;
  bool bias1, norm, bias2;
};

struct BlockShape {
  int64_t width, heads;
  MlpShape mlp;
};

struct LocalShape {
  static constexpr int64_t MOST_BLOCKS = 32;

  int64_t particles, neighbours, blocks;
  MlpShape embed;
  BlockShape block;
};

// `parts` says which optional weights there are: 1 first bias, 2 norm, 4 second bias.
static inline MlpShape mlp_shape(int64_t in, int64_t hidden, int64_t out, int64_t parts) {
  return {in, hidden, out, (parts & 1) != 0, (parts & 2) != 0, (parts & 4) != 0};
}

// Sizes of the flat arrays.
static inline int64_t number_of_weights(const MlpShape& s) {
  return s.hidden * s.in + s.bias1 * s.hidden + s.norm * (1 + s.hidden) + s.out * s.hidden +
         s.bias2 * s.out;
}
static inline int64_t number_of_weights(const BlockShape& s) {
  return 2 * (1 + s.width) + 4 * s.width * s.width + number_of_weights(s.mlp);
}
static inline int64_t number_of_weights(const LocalShape& s) {
  return number_of_weights(s.embed) + s.blocks * number_of_weights(s.block);
}

}  // namespace jetkern
