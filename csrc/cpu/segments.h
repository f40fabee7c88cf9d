// What a kernel gets to know of the segments (jets) that it works on.
#pragma once

#include <cstdint>

namespace jetkern {

// Rows of each segment, and for an attention bias the particles at the end of each.
struct Segments {
  const int64_t* offsets;       // (segments + 1) rows
  const int64_t* particles;     // (segments + 1) particles; null without a bias
  const int64_t* pairs;         // (segments) first pair of each
  int64_t total_pairs;          // pairs of one head
};

}  // namespace jetkern
