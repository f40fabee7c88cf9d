// Attention of the queries of a slot to the keys of its part of a cache.
#pragma once

#include "select.h"

namespace jetkern {

// The `count` first keys and values of a slot, (count, heads, width), each head shared by `group`
// queries. The next slot has `next_count` keys, 0 if there is none.
struct CachedSlot {
  int64_t count, heads, width, group;
  const float *keys, *values, *next;
  int64_t next_count;
};

}  // namespace jetkern

JETKERN_KERNEL(int64_t, decode_attention_scratch,
               (int64_t capacity, int64_t queries, int64_t width));
// q and out are (heads, group, width).
JETKERN_KERNEL(void, decode_attention, (const jetkern::CachedSlot& of, const float* q, float* out,
                                        float* scratch));
