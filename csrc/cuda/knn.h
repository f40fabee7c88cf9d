#pragma once

#include <cstdint>

namespace jetkern {

// Queues the search on a stream. coordinates: rows of `stride` floats, the first two of which count;
// offsets (jets + 1); out (rows, k): rows of the neighbours, -1 where there is none.
void find_neighbours(const float* coordinates, int64_t stride, int64_t rows, const int64_t* offsets,
                     int64_t jets, int64_t k, int64_t* out, void* stream);

}  // namespace jetkern
