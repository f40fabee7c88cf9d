#include "../linear_cross_entropy.h"

#include "gemm.h"
#include "math.h"

// A tile of logits is (classes, rows), rows in the lanes, so that softmax never works across lanes.
namespace jetkern::JETKERN_ISA {

namespace {

constexpr int64_t TILE = Vocabulary::TILE, LANES = Vocabulary::LANES;
constexpr float INFINITE = __builtin_inff();

struct Workspace {
  Workspace(float* scratch, int64_t width) : x(scratch) {
    logits = x + width * TILE;
    top = logits + TILE * TILE;
    total = top + TILE;
    picked = total + TILE;
    slope = picked + TILE;
    rows = slope + TILE;
    weight = rows + packed_size(TILE, width);
  }
  float *x, *logits;                    // (width, rows) in panels, (classes, rows)
  float *top, *total, *picked, *slope;  // (rows): largest logit, sum, target's logit, d_loss
  float *rows, *weight;                 // (rows, width) and (classes, width) in panels, backward
};

// Logits of `classes` classes from `begin` on.
void logits_of(const Vocabulary& of, const Workspace& work, int64_t lanes, int64_t begin,
               int64_t classes) {
  gemm(classes, lanes, of.width, of.weight + begin * of.width, of.width, 1,
       packed(work.x, of.width, of.bf16), work.logits, TILE, false);
  if (!of.bias) return;
  for (int64_t j = 0; j < classes; j++) {
    const vfloat bias = splat(of.bias[begin + j]);
    float* row = work.logits + j * TILE;
    for (int64_t c = 0; c < lanes; c += W) store(row + c, load(row + c) + bias);
  }
}

}  // namespace

void linear_cross_entropy_forward(const Vocabulary& of, int64_t first, int64_t rows, float* loss,
                                  float* softmax, float* scratch) {
  const Workspace work(scratch, of.width);
  const int64_t lanes = round_up(rows, W);
  pack(of.x + first * of.width, 1, of.width, of.width, rows, work.x, of.bf16);
  for (int64_t i = 0; i < TILE; i++) {
    work.top[i] = -INFINITE;
    work.total[i] = work.picked[i] = 0.0f;
  }
  for (int64_t begin = 0; begin < of.classes; begin += TILE) {
    const int64_t left = of.classes - begin, classes = left < TILE ? left : TILE;
    logits_of(of, work, lanes, begin, classes);
    for (int64_t i = 0; i < rows; i++) {
      const int64_t j = of.target[first + i];
      if (j >= begin && j < begin + classes) work.picked[i] = work.logits[(j - begin) * TILE + i];
    }
    for (int64_t c = 0; c < lanes; c += W) {
      const float* column = work.logits + c;
      const vfloat before = load(work.top + c);
      vfloat top = before, total{};
      for (int64_t j = 0; j < classes; j++) top = max(top, load(column + j * TILE));
      // Classes that cannot be, with logits of -infinity, may fill whole tiles.
      const vfloat shift = select(top == -INFINITE, vfloat{}, top);
      for (int64_t j = 0; j < classes; j++) total += exp(load(column + j * TILE) - shift);
      store(work.total + c, load(work.total + c) * exp(before - shift) + total);
      store(work.top + c, top);
    }
  }
  for (int64_t i = 0; i < rows; i++) {
    softmax[2 * (first + i)] = work.top[i];
    softmax[2 * (first + i) + 1] = 1.0f / work.total[i];
    loss[first + i] = of.target[first + i] < 0
                          ? 0.0f
                          : __builtin_logf(work.total[i]) + (work.top[i] - work.picked[i]);
  }
}

void linear_cross_entropy_backward(const Vocabulary& of, int64_t first, int64_t rows, int64_t begin,
                                   int64_t end, const float* d_loss, const float* softmax,
                                   bool fresh, float* d_weight, float* d_bias, float* d_x,
                                   float* scratch) {
  const Workspace work(scratch, of.width);
  const int64_t lanes = round_up(rows, W), width = of.width;
  const float* x = of.x + first * width;
  pack(x, 1, width, width, rows, work.x, of.bf16);
  pack(x, width, 1, rows, width, work.rows, of.bf16);
  for (int64_t i = 0; i < lanes; i++) {
    const bool counts = i < rows && of.target[first + i] >= 0;
    work.top[i] = i < rows ? softmax[2 * (first + i)] : 0.0f;
    work.total[i] = i < rows ? softmax[2 * (first + i) + 1] : 0.0f;
    work.slope[i] = counts ? d_loss[first + i] : 0.0f;
    work.picked[i] = counts ? 1.0f : 0.0f;
  }
  for (int64_t at = begin; at < end; at += TILE) {
    const int64_t classes = end - at < TILE ? end - at : TILE;
    logits_of(of, work, lanes, at, classes);
    for (int64_t c = 0; c < lanes; c += W) {
      const vfloat top = load(work.top + c), slope = load(work.slope + c);
      const vfloat share = load(work.total + c) * slope;
      const vint counts = load(work.picked + c) > 0.0f;  // what is not a number stays with its row
      for (int64_t j = 0; j < classes; j++) {
        float* logit = work.logits + j * TILE + c;
        store(logit, select(counts, exp(load(logit) - top) * share, vfloat{}));
      }
    }
    for (int64_t i = 0; i < rows; i++) {
      const int64_t j = of.target[first + i];
      if (j >= at && j < at + classes) work.logits[(j - at) * TILE + i] -= work.slope[i];
    }
    gemm(classes, width, rows, work.logits, TILE, 1, packed(work.rows, rows, of.bf16),
         d_weight + at * width, width, !fresh);
    if (d_bias)
      for (int64_t j = 0; j < classes; j++) {
        vfloat own{};
        for (int64_t c = 0; c < lanes; c += W) own += load(work.logits + j * TILE + c);
        d_bias[at + j] = (fresh ? 0.0f : d_bias[at + j]) + sum(own);
      }
    if (!d_x) continue;
    pack(of.weight + at * width, width, 1, classes, width, work.weight, of.bf16);
    gemm(rows, width, classes, work.logits, 1, TILE, packed(work.weight, classes, of.bf16), d_x,
         width, at > begin);
  }
}

void linear_cross_entropy_panels(const Vocabulary& of, int64_t first, int64_t rows, float* panels) {
  const float* x = of.x + first * of.width;
  pack(x, 1, of.width, of.width, rows, panels, of.bf16);
  pack(x, of.width, 1, rows, of.width, panels + packed_size(of.width, rows), of.bf16);
}

void linear_cross_entropy_logits(const Vocabulary& of, int64_t first, int64_t rows, int64_t begin,
                                 int64_t end, const float* panels, float* logits, float* top,
                                 float* total, float* picked) {
  const int64_t lanes = round_up(rows, LANES);
  for (int64_t i = 0; i < lanes; i++) {
    top[i] = -INFINITE;
    total[i] = picked[i] = 0.0f;
  }
  for (int64_t at = begin; at < end; at += TILE, logits += TILE * lanes) {
    const int64_t classes = end - at < TILE ? end - at : TILE;
    gemm(classes, lanes, of.width, of.weight + at * of.width, of.width, 1,
         packed(panels, of.width, of.bf16), logits, lanes, false);
    for (int64_t c = 0; c < lanes; c += W) {
      float* column = logits + c;
      const vfloat before = load(top + c);
      vfloat highest = before, sums{};
      for (int64_t j = 0; j < classes; j++) {
        vfloat logit = load(column + j * lanes);
        if (of.bias) store(column + j * lanes, logit += splat(of.bias[at + j]));
        highest = max(highest, logit);
      }
      // Classes that cannot be, with logits of -infinity, may fill whole tiles.
      const vfloat shift = select(highest == -INFINITE, vfloat{}, highest);
      for (int64_t j = 0; j < classes; j++) sums += exp(load(column + j * lanes) - shift);
      store(total + c, load(total + c) * exp(before - shift) + sums);
      store(top + c, highest);
    }
    for (int64_t i = 0; i < rows; i++) {
      const int64_t j = of.target[first + i];
      if (j >= at && j < at + classes) picked[i] = logits[(j - at) * lanes + i];
    }
  }
}

void linear_cross_entropy_gradient(const Vocabulary& of, int64_t first, int64_t rows, int64_t begin,
                                   int64_t end, const float* panels, float* logits,
                                   const float* top, const float* inverse, bool fresh,
                                   float* d_weight, float* d_bias, float* d_x, float* scratch) {
  const int64_t lanes = round_up(rows, LANES), width = of.width;
  const float* x = panels + packed_size(width, rows);
  for (int64_t at = begin; at < end; at += TILE, logits += TILE * lanes) {
    const int64_t classes = end - at < TILE ? end - at : TILE;
    for (int64_t c = 0; c < lanes; c += W) {
      const vfloat highest = load(top + c), share = load(inverse + c);
      const vint counts = share != 0.0f;  // what is not a number stays with its row
      for (int64_t j = 0; j < classes; j++) {
        float* logit = logits + j * lanes + c;
        store(logit, select(counts, exp(load(logit) - highest) * share, vfloat{}));
      }
    }
    for (int64_t i = 0; i < rows; i++) {
      const int64_t j = of.target[first + i];
      if (j >= at && j < at + classes) logits[(j - at) * lanes + i] -= 1.0f;
    }
    gemm(classes, width, rows, logits, lanes, 1, packed(x, rows, of.bf16), d_weight + at * width,
         width, !fresh);
    if (d_bias)
      for (int64_t j = 0; j < classes; j++) {
        vfloat own{};
        for (int64_t c = 0; c < lanes; c += W) own += load(logits + j * lanes + c);
        d_bias[at + j] = (fresh ? 0.0f : d_bias[at + j]) + sum(own);
      }
    if (!d_x) continue;
    pack(of.weight + at * width, width, 1, classes, width, scratch, of.bf16);
    gemm(rows, width, classes, logits, 1, lanes, packed(scratch, classes, of.bf16), d_x, width,
         at > begin);
  }
}

}  // namespace jetkern::JETKERN_ISA
