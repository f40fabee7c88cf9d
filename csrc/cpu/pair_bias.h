// The interaction bias of a run of jets.
#pragma once

#include "select.h"

namespace jetkern {

// The perceptron 3 -> hidden -> heads.
struct PairPerceptron {
  int64_t hidden, heads;
  const float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;  // (C, 3), (C), (H, C), (H)
};

// Jets first to last - 1: their particles (T, particle_row) and rows, and where the n x n pairs of
// jet `first` begin among the `pairs` of all jets.
struct PairRun {
  const float* particles;
  int64_t particle_row;
  const int64_t* offsets;
  int64_t first, last, pair_start, pairs;
};

// Gradient of the weights, back to back: fc1_weight transposed (3, C), fc1_bias (C), fc2_weight
// (H, C), fc2_bias (H).
inline int64_t pair_gradient_size(int64_t hidden, int64_t heads) {
  return (4 + heads) * hidden + heads;
}

constexpr int64_t PAIR_TILE = 64;   // pairs that are worked on at once
constexpr int64_t PAIR_BLOCK = 64;  // hidden units that are worked on at once

// Floats of scratch that either direction needs.
inline int64_t pair_scratch(int64_t hidden, int64_t heads) {
  int64_t wide = (hidden + PAIR_BLOCK - 1) / PAIR_BLOCK * PAIR_BLOCK;
  return 2 * PAIR_TILE * PAIR_BLOCK + (4 + PAIR_TILE) * heads + 7 * PAIR_TILE + 5 * wide;
}

}  // namespace jetkern

// bias (H, pairs), the columns of these jets.
JETKERN_KERNEL(void, pair_bias_forward,
               (const PairPerceptron& perceptron, const PairRun& run, float* bias, float* scratch));

// The gradient of the weights, from dbias (H, pairs), summed over these jets into `gradient`, and
// unless null the rows of d_particles (T, 4) that belong to these jets.
JETKERN_KERNEL(void, pair_bias_backward,
               (const PairPerceptron& perceptron, const PairRun& run, const float* dbias,
                float* gradient, float* d_particles, float* scratch));
