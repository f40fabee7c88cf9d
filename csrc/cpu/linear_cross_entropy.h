// Cross-entropy of a linear layer's classes, whose logits are made tile by tile and not kept.
#pragma once

#include "select.h"

namespace jetkern {

// Logits of row t are weight (classes, width) x_t + bias; bias may be null. A row whose target is
// negative has no loss.
struct Vocabulary {
  static constexpr int64_t TILE = 128;  // rows, and classes, of a tile of logits
  static constexpr int64_t LANES = 16;  // what rows that are kept are filled up to a multiple of
  int64_t classes, width;
  const float *x, *weight, *bias;
  const int64_t* target;
  bool bf16;  // products may round their factors to bfloat16
};

// Floats of scratch that either direction needs; panels fill the width up to 64 columns at most.
inline int64_t linear_cross_entropy_scratch(int64_t width) {
  return Vocabulary::TILE * (width + Vocabulary::TILE + 4 + 2 * ((width + 63) / 64 * 64));
}

// Floats of both packings of `rows` rows, and of scratch, that a pass which makes gradients at once
// needs.
inline int64_t linear_cross_entropy_panels(int64_t rows, int64_t width) {
  return rows * ((width + 63) / 64 * 64) + width * ((rows + 63) / 64 * 64);
}
inline int64_t linear_cross_entropy_sum_scratch(int64_t width) {
  return Vocabulary::TILE * ((width + 63) / 64 * 64);
}

}  // namespace jetkern

// Rows first to first + rows - 1, at most a tile of them: loss (T), softmax (T, 2): largest logit
// and the inverse of the softmax's denominator.
JETKERN_KERNEL(void, linear_cross_entropy_forward,
               (const Vocabulary& of, int64_t first, int64_t rows, float* loss, float* softmax,
                float* scratch));

// The same rows and the classes begin to end - 1. Adds to d_weight and d_bias (null for none), both
// of all classes, or writes them if `fresh`; writes these classes' part of the gradient of x's rows
// to d_x (rows, width), null for none.
JETKERN_KERNEL(void, linear_cross_entropy_backward,
               (const Vocabulary& of, int64_t first, int64_t rows, int64_t begin, int64_t end,
                const float* d_loss, const float* softmax, bool fresh, float* d_weight,
                float* d_bias, float* d_x, float* scratch));

// For the sum of all rows' losses, with its gradient in one pass: the logits of some rows, (classes,
// lanes) with rows in the lanes, filled up to a multiple of 16, are kept until they are turned into
// their gradient. Packs the rows first to first + rows - 1 for the other two.
JETKERN_KERNEL(void, linear_cross_entropy_panels,
               (const Vocabulary& of, int64_t first, int64_t rows, float* panels));

// Logits of the classes begin to end - 1, and of these, by row, the largest logit, the sum of the
// exponentials of what the others are below it, and the target's logit if it is one of them.
JETKERN_KERNEL(void, linear_cross_entropy_logits,
               (const Vocabulary& of, int64_t first, int64_t rows, int64_t begin, int64_t end,
                const float* panels, float* logits, float* top, float* total, float* picked));

// Turns these logits into their gradient, softmax - target, for rows with a largest logit `top` and
// an `inverse` of the denominator; adds to d_weight and d_bias (null for none) or writes them if
// `fresh`; writes these classes' part of the gradient of x's rows to d_x (rows, width), if any.
JETKERN_KERNEL(void, linear_cross_entropy_gradient,
               (const Vocabulary& of, int64_t first, int64_t rows, int64_t begin, int64_t end,
                const float* panels, float* logits, const float* top, const float* inverse,
                bool fresh, float* d_weight, float* d_bias, float* d_x, float* scratch));
