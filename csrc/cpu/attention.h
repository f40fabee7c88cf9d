// Attention inside one jet, all heads: what the ops attention and attention_block share.
#pragma once

#include "select.h"

namespace jetkern {

// Rows of q, k and v are `*_row` floats apart; head h takes columns h * width to (h + 1) * width.
struct AttentionJet {
  int64_t heads, width;
  int64_t queries, keys, particles;  // the bias is on the last `particles` queries and keys
  const float *q, *k, *v;
  int64_t q_row, k_row, v_row;
  const float* bias;  // entry (h, i, j) at bias[h * bias_head + i * particles + j], or null
  int64_t bias_head;
  // Dropout: weights whose 23 random bits are below `dropped` are left out, others times `kept`.
  int64_t dropped;  // 0 for none
  float kept;
  uint64_t key;  // the jet's random bits
};

// Where the gradients go: dq, dk, dv laid out with their own row distances, dbias like the bias
// (null if it is not wanted). With add_bias the gradient is added to what dbias holds.
struct AttentionGradients {
  float *dq, *dk, *dv, *dbias;
  int64_t dq_row, dk_row, dv_row;
  bool add_bias;
};

// Floats of scratch that either direction needs.
inline int64_t attention_scratch(int64_t queries, int64_t keys, int64_t width) {
  int64_t wide = (keys + 31) / 32 * 32;
  return (2 * queries + width) * wide + 64;
}

}  // namespace jetkern

// out (queries, heads * width), rows out_row apart; softmax (queries, heads, 2): each softmax's
// largest score and the inverse of its denominator, for the backward.
JETKERN_KERNEL(void, attention_forward,
               (const AttentionJet& jet, float* out, int64_t out_row, float* softmax, float* scratch));

JETKERN_KERNEL(void, attention_backward,
               (const AttentionJet& jet, const float* softmax, const float* dout, int64_t dout_row,
                const AttentionGradients& to, float* scratch));
