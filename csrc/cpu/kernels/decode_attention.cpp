#include "../decode_attention.h"

#include "lanes.h"
#include "math.h"

// Rows of the cache are read once, W of them for all heads before the next ones, which are asked for
// meanwhile, a share by each head: values after the last keys, and then the next slot's keys. Scores have keys in the lanes, values have columns there. Each query is alone, so its
// bits do not depend on what else is in the batch.
namespace jetkern::JETKERN_ISA {

namespace {

constexpr float MINUS_INFINITY = -__builtin_inff();
constexpr int64_t LINE = 16;  // floats of a cache line

// Asks for the share of query h, of `queries`, of the first W rows of `rows` at p, none if negative.
JETKERN_INLINE void fetch(const float* p, int64_t rows, int64_t row, int64_t h, int64_t queries) {
  const int64_t floats = (rows < W ? rows : W) * row, share = (floats / LINE + queries) / queries;
  for (int64_t i = h * share; i < (h + 1) * share && i * LINE < floats; i++)
    __builtin_prefetch(p + i * LINE);
}

// Products of a query with `some` keys, in the lanes; 0 in the others.
JETKERN_INLINE vfloat products_of(const float* q, const float* keys, int64_t row, int64_t width,
                                  int64_t some) {
  vfloat products[W];
#pragma GCC unroll 16
  for (int64_t i = 0; i < W; i++) {
    products[i] = vfloat{};
    if (i >= some) continue;
    const float* key = keys + i * row;
    for (int64_t c = 0; c < width; c += W) {
      const int64_t columns = width - c < W ? width - c : W;
      products[i] += load_first(q + c, columns) * load_first(key + c, columns);
    }
  }
  return sums(products);
}

// sum[v] += weights[j] value_j, V vectors of columns, the last of which has `last`.
template <int V>
JETKERN_INLINE void mix(const float* weights, const float* values, int64_t row, int64_t some,
                        int64_t last, float* sum) {
  vfloat even[V], odd[V] = {};
  for (int v = 0; v < V; v++) even[v] = load(sum + v * W);
  const auto add = [&](int64_t j, vfloat* to) {
    const vfloat weight = splat(weights[j]);
    for (int v = 0; v < V; v++) {
      const float* value = values + j * row + v * W;
      to[v] += weight * (v == V - 1 ? load_first(value, last) : load(value));
    }
  };
  int64_t j = 0;
  for (; j + 1 < some; j += 2) {
    add(j, even);
    add(j + 1, odd);
  }
  if (j < some) add(j, even);
  for (int v = 0; v < V; v++) store(sum + v * W, even[v] + odd[v]);
}

struct Workspace {
  float *scores, *sums, *shares;  // (queries, lanes), (queries, columns), (queries)
};

Workspace workspace(float* scratch, int64_t lanes, int64_t columns, int64_t queries) {
  return {scratch, scratch + queries * lanes, scratch + queries * (lanes + columns)};
}

}  // namespace

int64_t decode_attention_scratch(int64_t capacity, int64_t queries, int64_t width) {
  return queries * (round_up(capacity, W) + round_up(width, W) + 1);
}

void decode_attention(const CachedSlot& of, const float* q, float* out, float* scratch) {
  const int64_t queries = of.heads * of.group, row = of.heads * of.width, width = of.width;
  const int64_t lanes = round_up(of.count, W), columns = round_up(width, W);
  const Workspace work = workspace(scratch, lanes, columns, queries);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(width));
  for (int64_t first = 0; first < of.count; first += W) {
    const int64_t left = of.count - first, some = left < W ? left : W;
    for (int64_t h = 0; h < queries; h++) {
      if (left > W)
        fetch(of.keys + (first + W) * row, left - W, row, h, queries);
      else
        fetch(of.values, of.count, row, h, queries);
      const float* keys = of.keys + first * row + h / of.group * width;
      vfloat score = products_of(q + h * width, keys, row, width, some) * scale;
      for (int64_t i = some; i < W; i++) score[i] = MINUS_INFINITY;
      store(work.scores + h * lanes + first, score);
    }
  }
  for (int64_t h = 0; h < queries; h++) {
    float* scores = work.scores + h * lanes;
    vfloat top = splat(MINUS_INFINITY), total{};
    // what is not a number stays one: `max` takes the right one then
    for (int64_t j = 0; j < lanes; j += W) top = max(top, load(scores + j));
    top = splat(largest(top));
    for (int64_t j = 0; j < lanes; j += W) {
      const vfloat weight = exp(load(scores + j) - top);
      store(scores + j, weight);
      total += weight;
    }
    work.shares[h] = 1.0f / sum(total);
    for (int64_t c = 0; c < columns; c += W) store(work.sums + h * columns + c, vfloat{});
  }
  for (int64_t first = 0; first < of.count; first += W) {
    const int64_t left = of.count - first, some = left < W ? left : W;
    for (int64_t h = 0; h < queries; h++) {
      if (left > W)
        fetch(of.values + (first + W) * row, left - W, row, h, queries);
      else
        fetch(of.next, of.next_count, row, h, queries);
      const float* weights = work.scores + h * lanes + first;
      const float* values = of.values + first * row + h / of.group * width;
      float* to = work.sums + h * columns;
      int64_t c = 0;
      for (; width - c > W; c += 2 * W)
        mix<2>(weights, values + c, row, some, width - c < 2 * W ? width - c - W : W, to + c);
      if (c < width) mix<1>(weights, values + c, row, some, width - c, to + c);
    }
  }
  for (int64_t h = 0; h < queries; h++)
    for (int64_t c = 0; c < width; c += W) {
      const vfloat mixed = load(work.sums + h * columns + c) * work.shares[h];
      store_first(out + h * width + c, mixed, width - c < W ? width - c : W);
    }
}

}  // namespace jetkern::JETKERN_ISA
