#include "../decode_attention.h"

#include <algorithm>

#include "parallel.h"

namespace jetkern {

// q (S, H, d), keys and values (S, capacity, G, d), lengths (S) -> (S, H, d)
Tensor decode_attention(const Tensor& q, const Tensor& keys, const Tensor& values,
                        const Tensor& lengths) {
  const int64_t slots = q.size(0), heads = q.size(1), width = q.size(2);
  const int64_t capacity = keys.size(1), shared = keys.size(2);
  if (!shared || heads % shared || keys.size(0) != slots || keys.size(3) != width ||
      lengths.size(0) != slots)
    throw std::runtime_error("q, keys, values and lengths do not fit each other");
  for (int64_t i = 0; i < 4; i++)
    if (values.size(i) != keys.size(i)) throw std::runtime_error("keys and values differ in shape");
  const int64_t* counts = data<int64_t>(lengths, "lengths");
  for (int64_t s = 0; s < slots; s++)
    if (counts[s] < 1 || counts[s] > capacity)
      throw std::runtime_error("length of slot " + std::to_string(s) + " is " +
                               std::to_string(counts[s]) + ", not 1 to " +
                               std::to_string(capacity));
  Tensor out = torch::stable::new_empty(q, {slots, heads, width});
  const float *queries = data<float>(q, "q"), *k = data<float>(keys, "keys");
  const float* v = data<float>(values, "values");
  float* to = data<float>(out, "out");
  const int64_t group = heads / shared, row = shared * width;
  const int64_t scratch = JETKERN_SELECT(decode_attention_scratch)(capacity, heads, width);
  auto run = JETKERN_SELECT(decode_attention);
  parallel(slots, scratch, [&](int64_t s, float* own) {
    const int64_t first = s * capacity * row, mine = s * heads * width;
    const bool last = s + 1 == slots;
    const float* next = k + first + (last ? 0 : capacity * row);
    const int64_t after = last ? 0 : counts[s + 1];
    run({counts[s], shared, width, group, k + first, v + first, next, after}, queries + mine,
        to + mine, own);
  });
  return out;
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("decode_attention", TORCH_BOX(&jetkern::decode_attention));
}
