// Attention of one query to the keys of its slot of a cache.
#pragma once

#include "select.h"

namespace jetkern {

// The `count` keys and values of a slot's head, (count, width) with rows `row` floats apart.
struct CachedHead {
  int64_t count, width, row;
  const float *keys, *values;
};

// Floats of scratch for so many keys.
inline int64_t decode_attention_scratch(int64_t capacity) { return capacity + 16; }

}  // namespace jetkern

// The `group` queries (group, width) that share the head: out (group, width).
JETKERN_KERNEL(void, decode_attention, (const jetkern::CachedHead& of, const float* q,
                                        int64_t group, float* out, float* scratch));
