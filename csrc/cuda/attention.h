#pragma once

#include "types.h"

namespace jetkern {

// Packed jets. q, k and v have rows `*_row` elements apart, of heads * width dense ones each, all
// aligned to 16 bytes, in float or bf16 (half). The offsets are (jets + 1). Without a bias (null)
// particle_offsets and pair_offsets are not read.
struct AttentionJets {
  int64_t jets, queries;  // queries of all jets together
  int heads, width;       // width 8, 16 or 32
  bool half, bias_half;
  Precision precision;
  float scale;  // of the scores
  const void *q, *k, *v;
  int64_t q_row, k_row, v_row;
  const int64_t *query_offsets, *key_offsets, *particle_offsets, *pair_offsets;
  const void* bias;  // (heads, pairs)
  int64_t pairs;
};

// out (queries, heads, width) like q; softmax (queries, heads, 2): each one's largest exponent,
// to base 2, and the inverse of its sum.
struct AttentionOutput {
  void* out;
  float* softmax;
};

// out and softmax as the forward left them, and dout; rows of out and dout may lie apart. delta
// (queries, heads) is working memory. The gradients are contiguous, dbias may be null.
struct AttentionGradients {
  const void *dout, *out;
  int64_t dout_row, out_row;
  const float* softmax;
  float* delta;
  void *dq, *dk, *dv, *dbias;
};

// Queue the kernels on a stream; UNITS = width / 8.
template <int UNITS>
void queue_attention_forward(const AttentionJets& jets, const AttentionOutput& to, void* stream);
template <int UNITS>
void queue_attention_backward(const AttentionJets& jets, const AttentionGradients& to, void* stream);

}  // namespace jetkern
