// Causal attention inside one set: the heads that share one head of keys and values.
#pragma once

#include "select.h"

namespace jetkern {

// Rows of q, k and v are `*_row` floats apart. Head g of the group takes columns g * width to
// (g + 1) * width of q; k and v are one head.
struct CausalSet {
  static constexpr int64_t KEYS = 128;  // at a time
  static constexpr int64_t PANELS = 16;  // of queries, 32 at most, that see them
  int64_t rows, width, group;
  const float *q, *k, *v;
  int64_t q_row, k_row, v_row;
  bool bf16;  // products may round their factors to bfloat16
};

// Where the gradients go, laid out like q, k and v with their own row distances.
struct CausalGradients {
  float *dq, *dk, *dv;
  int64_t dq_row, dk_row, dv_row;
};

// Floats of scratch that either direction needs; nothing grows with the set.
inline int64_t causal_attention_scratch(int64_t width) {
  return CausalSet::KEYS * (3 * 32 + 4 * width) + 32 * (width + 32) +
         CausalSet::PANELS * (3 * width + 3) * 32;
}

}  // namespace jetkern

// out (rows, group * width), rows out_row apart; softmax (rows, group, 2), rows softmax_row apart:
// each softmax's largest score and the inverse of its denominator, for the backward.
JETKERN_KERNEL(void, causal_attention_forward,
               (const CausalSet& set, float* out, int64_t out_row, float* softmax,
                int64_t softmax_row, float* scratch));

// dout has the rows of out.
JETKERN_KERNEL(void, causal_attention_backward,
               (const CausalSet& set, const float* out, int64_t out_row, const float* softmax,
                int64_t softmax_row, const float* dout, const CausalGradients& to,
                float* scratch));
