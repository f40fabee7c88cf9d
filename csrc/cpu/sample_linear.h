// Draws from the softmax of a linear layer, whose logits are made tile by tile and not kept.
#pragma once

#include "select.h"

namespace jetkern {

// Logits of row t are weight (classes, width) x_t + bias; bias and forbidden may be null. Row t draws
// with the random bits behind keys[t], from classes whose logit is above cuts[t], or is it and whose
// number is at most lasts[t]; both null for all.
struct Draws {
  static constexpr int64_t TILE = 128;  // rows, and classes, of a tile of logits
  static constexpr int64_t FEW = 16;    // rows of `sample_linear_logits`
  int64_t classes, width;
  const float *x, *weight, *bias;
  const bool* forbidden;
  const int64_t* keys;
  float temperature;
  const float* cuts;
  const int64_t* lasts;
  bool bf16;  // products may round their factors to bfloat16
};

inline int64_t sample_linear_scratch(int64_t width) {
  return Draws::TILE * (width + Draws::TILE + 1);
}

}  // namespace jetkern

// Rows first to first + rows - 1, at most a tile of them: their classes to out (T), -1 for a row
// none can be drawn from.
JETKERN_KERNEL(void, sample_linear, (const jetkern::Draws& of, int64_t first, int64_t rows,
                                     int64_t* out, float* scratch));

// The same rows' logits, at most FEW rows: to (classes, FEW), the bits that `sample_linear` sees.
JETKERN_KERNEL(void, sample_linear_logits, (const jetkern::Draws& of, int64_t first, int64_t rows,
                                            float* to, float* scratch));
