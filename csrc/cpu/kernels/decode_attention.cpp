#include "../decode_attention.h"

#include "lanes.h"
#include "math.h"

// Scores have keys in the lanes: the products of W keys with the query are turned, then added. Values
// have columns there, a few vectors of them at a time. Each query is alone, so its bits do not depend
// on what else is in the batch.
namespace jetkern::JETKERN_ISA {

namespace {

constexpr float MINUS_INFINITY = -__builtin_inff();

// scores[j] = scale q k_j, -infinity in the lanes after the last key; returns the largest.
float scores_of(const CachedHead& of, const float* q, float scale, float* scores) {
  vfloat top = splat(MINUS_INFINITY);
  for (int64_t first = 0; first < of.count; first += W) {
    const int64_t some = of.count - first < W ? of.count - first : W;
    vfloat products[W] = {};
    for (int64_t i = 0; i < some; i++) {
      const float* key = of.keys + (first + i) * of.row;
      vfloat sum{};
      for (int64_t c = 0; c < of.width; c += W) {
        const int64_t columns = of.width - c < W ? of.width - c : W;
        sum += load_first(q + c, columns) * load_first(key + c, columns);
      }
      products[i] = sum;
    }
    transpose(products);
    vfloat score{};
    for (int64_t i = 0; i < W; i++) score += products[i];
    score *= scale;
    for (int64_t i = some; i < W; i++) score[i] = MINUS_INFINITY;
    // what is not a number stays one: `max` takes the right one then
    top = max(top, score);
    store(scores + first, score);
  }
  return largest(top);
}

// out[c] = share * sum_j weights[j] v_j[c] of the V vectors of columns from c on.
template <int V>
void mix(const CachedHead& of, const float* weights, float share, int64_t c, float* out) {
  const int64_t last = of.width - c < V * W ? of.width - c - (V - 1) * W : W;
  vfloat even[V] = {}, odd[V] = {};
  const auto add = [&](int64_t j, vfloat* to) {
    const float* value = of.values + j * of.row + c;
    const vfloat weight = splat(weights[j]);
    for (int v = 0; v < V; v++)
      to[v] += weight * (v == V - 1 ? load_first(value + v * W, last) : load(value + v * W));
  };
  int64_t j = 0;
  for (; j + 1 < of.count; j += 2) {
    add(j, even);
    add(j + 1, odd);
  }
  if (j < of.count) add(j, even);
  for (int v = 0; v < V; v++) store_first(out + c + v * W, (even[v] + odd[v]) * share,
                                          v == V - 1 ? last : W);
}

}  // namespace

void decode_attention(const CachedHead& of, const float* q, int64_t group, float* out,
                      float* scratch) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(of.width));
  for (int64_t g = 0; g < group; g++, q += of.width, out += of.width) {
    const vfloat top = splat(scores_of(of, q, scale, scratch));
    vfloat total{};
    for (int64_t j = 0; j < of.count; j += W) {
      const vfloat weight = exp(load(scratch + j) - top);
      store(scratch + j, weight);
      total += weight;
    }
    const float share = 1.0f / sum(total);
    int64_t c = 0;
    for (; of.width - c > W; c += 2 * W) mix<2>(of, scratch, share, c, out);
    if (c < of.width) mix<1>(of, scratch, share, c, out);
  }
}

}  // namespace jetkern::JETKERN_ISA
