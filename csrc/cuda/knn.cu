// K nearest neighbours: a block of threads for each jet, a thread for each particle.
//
// A jet's coordinates are staged in shared memory. Each thread walks over them and keeps its LENGTH
// best in registers, sorted; a candidate enters by two compare-selects at every place, without
// branches. Columns come in rising order and enter only ahead of what is strictly farther, so equal
// distances keep the order of the rows. For k > LENGTH the walk is repeated for what comes next.

#include "knn.h"

#include <algorithm>

#include "device.h"

namespace jetkern {

namespace {

constexpr int THREADS = 128;
constexpr int COLUMNS = 256;  // staged at a time

// Distances are compared as bits: floats that are not negative keep their order as integers.
constexpr uint32_t ABSENT = 0xFFFFFFFF, INFINITE = 0x7F800000;

JETKERN_DEVICE uint32_t distance(float2 a, float2 b) {
  float eta = a.x - b.x, phi = a.y - b.y;
  // Products are rounded each, as in the reference, so that the same pairs tie.
  return __float_as_uint(__fadd_rn(__fmul_rn(eta, eta), __fmul_rn(phi, phi))) & 0x7FFFFFFF;
}

template <int LENGTH>
JETKERN_DEVICE void insert(uint32_t (&nearest)[LENGTH], int (&columns)[LENGTH], uint32_t candidate,
                           int column) {
  bool nearer = candidate < nearest[LENGTH - 1];
#pragma unroll
  for (int place = LENGTH - 1; place > 0; place--) {
    bool ahead = candidate < nearest[place - 1];
    columns[place] = ahead ? columns[place - 1] : nearer ? column : columns[place];
    nearest[place] = max(nearest[place - 1], min(nearest[place], candidate));
    nearer = ahead;
  }
  columns[0] = nearer ? column : columns[0];
  nearest[0] = min(nearest[0], candidate);
}

template <int LENGTH>
__global__ void __launch_bounds__(THREADS)
    knn_kernel(const float* coordinates, int64_t stride, const int64_t* offsets, int k,
               int64_t* out) {
  constexpr int PITCH = LENGTH | 1;  // odd: a column of lists lies in 32 banks
  __shared__ float2 points[COLUMNS];
  __shared__ int lists[THREADS * PITCH];
  const int64_t first = offsets[blockIdx.x];
  const int n = static_cast<int>(offsets[blockIdx.x + 1] - first);
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  coordinates += first * stride;
  out += first * k;
  for (int begin = 0; begin < n; begin += threads) {
    const int row = begin + thread;
    float2 own = make_float2(0, 0);
    if (row < n) own = make_float2(coordinates[row * stride], coordinates[row * stride + 1]);
    uint32_t last_distance = 0;
    int last_column = -1;
    for (int found = 0; found < k; found += LENGTH) {
      uint32_t nearest[LENGTH];
      int columns[LENGTH];
#pragma unroll
      for (int place = 0; place < LENGTH; place++) {
        nearest[place] = ABSENT;
        columns[place] = -1;
      }
      for (int base = 0; base < n; base += COLUMNS) {
        const int staged = min(COLUMNS, n - base);
        __syncthreads();
        for (int column = thread; column < staged; column += threads) {
          const float* point = coordinates + (base + column) * stride;
          points[column] = make_float2(point[0], point[1]);
        }
        __syncthreads();
        for (int column = 0; column < staged; column++) {
          uint32_t candidate = distance(own, points[column]);
          const int other = base + column;
          bool usable = candidate < nearest[LENGTH - 1] && candidate != INFINITE && other != row;
          if (found)  // beyond what the walks before have found
            usable = usable && (candidate > last_distance ||
                                (candidate == last_distance && other > last_column));
          if (usable) insert(nearest, columns, candidate, other);
        }
      }
#pragma unroll
      for (int place = 0; place < LENGTH; place++) lists[thread * PITCH + place] = columns[place];
      last_distance = nearest[LENGTH - 1];
      last_column = columns[LENGTH - 1];
      __syncthreads();
      const int length = min(LENGTH, k - found), rows = min(threads, n - begin);
      for (int entry = thread; entry < rows * length; entry += threads) {
        const int owner = entry / length, place = entry % length;
        const int column = lists[owner * PITCH + place];
        out[int64_t(begin + owner) * k + found + place] = column < 0 ? -1 : first + column;
      }
    }
  }
}

}  // namespace

void find_neighbours(const float* coordinates, int64_t stride, int64_t rows, const int64_t* offsets,
                     int64_t jets, int64_t k, int64_t* out, void* stream) {
  if (!rows || !jets) return;
  auto kernel = k <= 10   ? knn_kernel<10>
                : k <= 15 ? knn_kernel<15>
                : k <= 16 ? knn_kernel<16>
                          : knn_kernel<32>;
  // As many threads as most jets have use for; the results do not depend on it.
  const int64_t threads = std::min<int64_t>(THREADS, (rows / jets * 5 / 4 + 31) / 32 * 32);
  launch(kernel, dim3(static_cast<unsigned>(jets)), std::max<unsigned>(32, threads), stream,
         coordinates, stride, offsets, static_cast<int>(k), out);
}

}  // namespace jetkern
