// Shapes of the composite ops' weights, as the registrations and the kernels of every instruction
// set share them. Weights come in the order of jetkern/ops/parameters.py.
#pragma once

#include <cstdint>

namespace jetkern {

// fc2(norm(gelu(fc1(x)))), in -> hidden -> out.
struct MlpShape {
  int64_t in, hidden, out;
  bool bias1, norm, bias2;
  bool bf16;  // products may round their factors to bfloat16
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
static inline MlpShape mlp_shape(int64_t in, int64_t hidden, int64_t out, int64_t parts,
                                 bool bf16) {
  return {in, hidden, out, (parts & 1) != 0, (parts & 2) != 0, (parts & 4) != 0, bf16};
}

}  // namespace jetkern
