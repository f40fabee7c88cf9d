// A perceptron of any depth on the pairs i <= j of a run of jets.
#pragma once

#include "select.h"

namespace jetkern {

struct PairMlp {
  static constexpr int64_t MOST_LAYERS = 16;

  int64_t layers;
  int64_t widths[MOST_LAYERS + 1];             // features, hidden layers, heads
  const float* weights[2 * MOST_LAYERS];       // weight (out, in) and bias (out) of each layer

  // Gradient of the weights, back to back in the order above.
  int64_t size() const {
    int64_t total = 0;
    for (int64_t l = 0; l < layers; l++) total += (widths[l] + 1) * widths[l + 1];
    return total;
  }
};

// Jets first to last - 1: where their features (entries, widths[0]) begin, and where their n x n
// pairs begin among the `pairs` of all jets.
struct PairList {
  const float* features;
  const int64_t* offsets;
  int64_t first, last, entry_start, pair_start, pairs;
};

}  // namespace jetkern

// Floats of the rearranged weights, which the others below take, and of a thread's scratch.
JETKERN_KERNEL(int64_t, pair_mlp_panels, (const PairMlp&));
JETKERN_KERNEL(void, pair_mlp_pack, (const PairMlp&, float* panels));
JETKERN_KERNEL(int64_t, pair_mlp_scratch, (const PairMlp&));

// bias (H, pairs), the columns of these jets.
JETKERN_KERNEL(void, pair_mlp_forward,
               (const PairMlp&, const float* panels, const PairList&, float* bias, float* scratch));

// The gradient of the weights, from dbias (H, pairs), summed over these jets into `gradient`, and
// unless null that of the features (entries, F) of these jets.
JETKERN_KERNEL(void, pair_mlp_backward,
               (const PairMlp&, const float* panels, const PairList&, const float* dbias,
                float* gradient, float* d_features, float* scratch));
