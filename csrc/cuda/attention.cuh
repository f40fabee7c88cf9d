// Attention in packed jets, forward and backward. A block of threads takes a jet and a few of its
// heads, a warp 16 queries (or 16 keys) of a head at a time, on its own: nothing is exchanged
// between warps but, in the backward, the sums delta, and there are no atomics.
//
// Forward: 64 keys at a time, with the usual rescaling of the softmax between them.
// Backward: P is computed again from what the forward keeps of each softmax, and that twice: by warps
// that own keys and go over the queries, for dK, dV and the bias's gradient, and by warps that own
// queries and go over the keys, for dQ. Two of the seven products could be saved by passing dS
// through shared memory; this way any number of particles fits, and nothing is shared.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention.h"
#include "mma.h"

namespace jetkern {

namespace {

constexpr int ATTENTION_THREADS = 128, WARPS = ATTENTION_THREADS / 32;
constexpr int KEYS = 64;  // of a step of the forward
constexpr float LOG2_E = 1.4426950408889634f;

// Blocks that a multiprocessor must hold, which bounds the registers: more of them spill.
template <Precision P, int U>
constexpr int FORWARD_BLOCKS = (U == 4 ? 3 : 4) + (P == Precision::bf16);
template <Precision P, int U>
constexpr int BACKWARD_BLOCKS = (U == 4 ? 3 : 4) + (P == Precision::bf16 && U == 1) -
                                (P == Precision::ieee && U > 1);

// Where a jet is. Its first particle stands in rows queries - particles and keys - particles.
struct Jet {
  int64_t query_row, key_row, pair_row;  // its first ones in the batch
  int queries, keys, particles;          // no particles without a bias

  JETKERN_DEVICE Jet(const AttentionJets& all, int64_t jet) {
    query_row = all.query_offsets[jet];
    key_row = all.key_offsets[jet];
    queries = static_cast<int>(all.query_offsets[jet + 1] - query_row);
    keys = static_cast<int>(all.key_offsets[jet + 1] - key_row);
    pair_row = 0;
    particles = 0;
    if (all.bias) {
      pair_row = all.pair_offsets[jet];
      particles = static_cast<int>(all.particle_offsets[jet + 1] - all.particle_offsets[jet]);
    }
  }
};

// Calls run(pointer to the bias of the jet's first pair), be it float or bf16.
template <class F>
JETKERN_DEVICE void with_bias(const void* bias, const AttentionJets& all, const Jet& jet, int head,
                              const F& run) {
  const int64_t place = head * all.pairs + jet.pair_row;
  if (all.bias_half)
    run(static_cast<bf16*>(const_cast<void*>(bias)) + place);
  else
    run(static_cast<float*>(const_cast<void*>(bias)) + place);
}

// The scores of 16 queries (down) and 8 N keys before q k is added, in units of q k: the bias over
// the scale, and minus infinity for keys that do not exist. query and key: of the lane's c[0][0].
template <int N, class B>
JETKERN_DEVICE void start_scores(float (&c)[N][4], const Jet& jet, const B* bias, float over_scale,
                                 int query, int key) {
  key -= jet.keys - jet.particles;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = query + 8 * half - (jet.queries - jet.particles);
    const unsigned paired = unsigned(row) < unsigned(jet.particles) ? jet.particles : 0;
    const int64_t place = int64_t(row) * jet.particles + key;
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int column = key + 8 * j + i;
        float score = 0;
        if (unsigned(column) < paired) score = to_float(bias[place + 8 * j + i]) * over_scale;
        c[j][2 * half + i] = column < jet.particles ? score : -INFINITY;
      }
    }
  }
}

// Calls run(c[i], place among the jet's pairs) for the pairs of 16 keys (down) and 8 queries that
// are particles. key and query: of the lane's c[0].
template <class F>
JETKERN_DEVICE void each_pair(float (&c)[4], const Jet& jet, int key, int query, const F& run) {
  key -= jet.keys - jet.particles;
#pragma unroll
  for (int column = 0; column < 2; column++) {
    const int row = query + column - (jet.queries - jet.particles);
    const unsigned paired = unsigned(row) < unsigned(jet.particles) ? jet.particles : 0;
    const int64_t place = int64_t(row) * jet.particles + key;
#pragma unroll
    for (int half = 0; half < 2; half++)
      if (unsigned(key + 8 * half) < paired) run(c[column + 2 * half], place + 8 * half);
  }
}

// A head's rows in a tensor whose rows are `row` elements apart.
template <class T, int U>
JETKERN_DEVICE Tokens<T, U> tokens(const void* tensor, int64_t row, int64_t first, int count,
                                   int head) {
  return {static_cast<const T*>(tensor) + first * row + head * 8 * U, row, count};
}

template <class T, Precision P, int U>
__global__ void __launch_bounds__(ATTENTION_THREADS, FORWARD_BLOCKS<P, U>)
    attention_forward_kernel(AttentionJets all, AttentionOutput to, int group) {
  const Jet jet(all, blockIdx.x);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_head = blockIdx.y * group, heads = min(group, all.heads - first_head);
  const int tiles = (jet.queries + 15) / 16;
  const int64_t row = int64_t(all.heads) * 8 * U;
  const float scale = all.scale * LOG2_E, over_scale = 1 / all.scale;
  for (int item = threadIdx.x / 32; item < heads * tiles; item += WARPS) {
    const int head = first_head + item / tiles, begin = item % tiles * 16;
    const auto k = tokens<T, U>(all.k, all.k_row, jet.key_row, jet.keys, head);
    const auto v = tokens<T, U>(all.v, all.v_row, jet.key_row, jet.keys, head);
    Left<P> q[U];
    load_left(q, tokens<T, U>(all.q, all.q_row, jet.query_row, jet.queries, head), begin);
    float out[U][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    for (int first = 0; first < jet.keys; first += KEYS) {
      float scores[KEYS / 8][4];
      with_bias(all.bias, all, jet, head, [&](auto* bias) {
        start_scores(scores, jet, bias, over_scale, begin + g, first + 2 * t);
      });
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) {
        if (first + 8 * j < jet.keys) {
          Pair<P> right[U];
          load_right(right, k, first + 8 * j);
          multiply(scores[j], q, right);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float top = largest[half];
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
          top = fmaxf(top, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFF, top, 2));
        const float origin = top == -INFINITY ? 0 : top * scale;  // else exp2(-inf + inf)
        const float shrink = exp2_fast(largest[half] * scale - origin);
        largest[half] = top;
        sum[half] *= shrink;
#pragma unroll
        for (int u = 0; u < U; u++) {
          out[u][2 * half] *= shrink;
          out[u][2 * half + 1] *= shrink;
        }
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; i++) {
            scores[j][i] = exp2_fast(fmaf(scores[j][i], scale, -origin));
            sum[half] += scores[j][i];
          }
        }
      }
#pragma unroll
      for (int j = 0; j < KEYS / 8; j += 2)
        if (first + 8 * j < jet.keys) {
          const Left<P> weights[2] = {left<P>(scores[j]), left<P>(scores[j + 1])};
          multiply_sum(out, weights, v, first + 8 * j);
        }
    }
    float inverse[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] += __shfl_xor_sync(0xFFFFFFFF, sum[half], 1);
      sum[half] += __shfl_xor_sync(0xFFFFFFFF, sum[half], 2);
      inverse[half] = jet.keys ? 1 / sum[half] : 0;
      const float origin = largest[half] == -INFINITY ? 0 : largest[half] * scale;
      const int query = begin + g + 8 * half;
      if (t == 0 && query < jet.queries)
        reinterpret_cast<float2*>(to.softmax)[(jet.query_row + query) * all.heads + head] =
            make_float2(origin, inverse[half]);
    }
    store_rows(static_cast<T*>(to.out) + jet.query_row * row + head * 8 * U, row, jet.queries,
               begin, out, inverse[0], inverse[1]);
  }
}

// What a softmax's backward needs of a query, in which P = 2^(score - origin) inverse: origin and
// inverse, and delta = sum_j P dP. Queries that do not exist have P = 0.
struct Query {
  float origin, inverse, delta;

  JETKERN_DEVICE Query(const AttentionJets& all, const AttentionGradients& to, const Jet& jet,
                       int query, int head) {
    const int64_t place = (jet.query_row + query) * all.heads + head;
    float2 softmax = make_float2(INFINITY, 0);
    if (query < jet.queries) softmax = reinterpret_cast<const float2*>(to.softmax)[place];
    origin = softmax.x;
    inverse = softmax.y;
    delta = query < jet.queries ? to.delta[place] : 0;
  }

  JETKERN_DEVICE float probability(float score, float scale) const {
    return exp2_fast(fmaf(score, scale, -origin)) * inverse;
  }
};

template <class T, Precision P, int U>
__global__ void __launch_bounds__(ATTENTION_THREADS, BACKWARD_BLOCKS<P, U>)
    attention_backward_kernel(AttentionJets all, AttentionGradients to, int group) {
  const Jet jet(all, blockIdx.x);
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int first_head = blockIdx.y * group, heads = min(group, all.heads - first_head);
  const int64_t row = int64_t(all.heads) * 8 * U;
  const float scale = all.scale * LOG2_E, over_scale = 1 / all.scale;

  // delta = sum_j P dP = out . dout
  for (int i = threadIdx.x; i < jet.queries * heads; i += ATTENTION_THREADS) {
    const int query = i / heads, head = first_head + i % heads;
    const T* x = tokens<T, U>(to.out, to.out_row, jet.query_row, jet.queries, head).at(query);
    const T* y = tokens<T, U>(to.dout, to.dout_row, jet.query_row, jet.queries, head).at(query);
    float sum = 0;
#pragma unroll
    for (int part = 0; part < 4; part++) {
      auto a = load<2 * U>(x + 2 * U * part, true), b = load<2 * U>(y + 2 * U * part, true);
#pragma unroll
      for (int j = 0; j < 2 * U; j++) sum += to_float(a.x[j]) * to_float(b.x[j]);
    }
    to.delta[(jet.query_row + query) * all.heads + head] = sum;
  }
  __syncthreads();

  const int key_tiles = (jet.keys + 15) / 16, tiles = key_tiles + (jet.queries + 15) / 16;
  for (int item = threadIdx.x / 32; item < heads * tiles; item += WARPS) {
    const int head = first_head + item / tiles, tile = item % tiles;
    const auto q = tokens<T, U>(all.q, all.q_row, jet.query_row, jet.queries, head);
    const auto dout = tokens<T, U>(to.dout, to.dout_row, jet.query_row, jet.queries, head);
    const auto k = tokens<T, U>(all.k, all.k_row, jet.key_row, jet.keys, head);
    const auto v = tokens<T, U>(all.v, all.v_row, jet.key_row, jet.keys, head);
    if (tile < key_tiles) {  // dk, dv and dbias of 16 keys
      const int begin = tile * 16;
      Left<P> own_k[U], own_v[U];
      load_left(own_k, k, begin);
      load_left(own_v, v, begin);
      float dk[U][4] = {}, dv[U][4] = {};
      for (int first = 0; first < jet.queries; first += 16) {
        Left<P> weights[2], slopes[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int query = first + 8 * half + 2 * t;  // keys down, queries across
          float weight[4] = {}, slope[4] = {};
          with_bias(all.bias, all, jet, head, [&](auto* bias) {
            each_pair(weight, jet, begin + g, query, [&](float& score, int64_t place) {
              score = to_float(bias[place]) * over_scale;
            });
          });
          if (first + 8 * half < jet.queries) {
            Pair<P> right[U];
            load_right(right, q, first + 8 * half);
            multiply(weight, own_k, right);
            load_right(right, dout, first + 8 * half);
            multiply(slope, own_v, right);
          }
#pragma unroll
          for (int column = 0; column < 2; column++) {
            const Query of(all, to, jet, query + column, head);
#pragma unroll
            for (int i = column; i < 4; i += 2) {
              weight[i] = of.probability(weight[i], scale);
              slope[i] = weight[i] * (slope[i] - of.delta);
            }
          }
          if (to.dbias)
            with_bias(to.dbias, all, jet, head, [&](auto* dbias) {
              each_pair(slope, jet, begin + g, query, [&](float one, int64_t place) {
                dbias[place] = from_float<std::decay_t<decltype(*dbias)>>(one);
              });
            });
          weights[half] = left<P>(weight);
          slopes[half] = left<P>(slope);
        }
        multiply_sum(dv, weights, dout, first);
        multiply_sum(dk, slopes, q, first);
      }
      const int64_t place = jet.key_row * row + head * 8 * U;
      store_rows(static_cast<T*>(to.dk) + place, row, jet.keys, begin, dk, all.scale, all.scale);
      store_rows(static_cast<T*>(to.dv) + place, row, jet.keys, begin, dv, 1.0f, 1.0f);
    } else {  // dq of 16 queries
      const int begin = (tile - key_tiles) * 16;
      Left<P> own_q[U], own_dout[U];
      load_left(own_q, q, begin);
      load_left(own_dout, dout, begin);
      const Query of[2] = {Query(all, to, jet, begin + g, head),
                           Query(all, to, jet, begin + g + 8, head)};
      float dq[U][4] = {};
      for (int first = 0; first < jet.keys; first += 16) {
        Left<P> slopes[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float weight[1][4], slope[4] = {};  // queries down, keys across
          with_bias(all.bias, all, jet, head, [&](auto* bias) {
            start_scores(weight, jet, bias, over_scale, begin + g, first + 8 * half + 2 * t);
          });
          if (first + 8 * half < jet.keys) {
            Pair<P> right[U];
            load_right(right, k, first + 8 * half);
            multiply(weight[0], own_q, right);
            load_right(right, v, first + 8 * half);
            multiply(slope, own_dout, right);
          }
#pragma unroll
          for (int i = 0; i < 4; i++)
            slope[i] = of[i / 2].probability(weight[0][i], scale) * (slope[i] - of[i / 2].delta);
          slopes[half] = left<P>(slope);
        }
        multiply_sum(dq, slopes, k, first);
      }
      store_rows(static_cast<T*>(to.dq) + jet.query_row * row + head * 8 * U, row, jet.queries,
                 begin, dq, all.scale, all.scale);
    }
  }
}

// Heads of a block: as many as give its warps two turns at jets of average size. The results do not
// depend on it.
template <class Kernel, class Output>
void launch_jets(Kernel kernel, const AttentionJets& all, const Output& to, void* stream) {
  const int64_t tiles = std::max<int64_t>(1, (all.queries / all.jets + 15) / 16);
  const int group = static_cast<int>(std::clamp<int64_t>(2 * WARPS / tiles, 1, all.heads));
  const dim3 grid(static_cast<unsigned>(all.jets),
                  static_cast<unsigned>((all.heads + group - 1) / group));
  launch(kernel, grid, ATTENTION_THREADS, stream, all, to, group);
}

// Calls run(T(), constant P) for the jets' dtype and precision.
template <class F>
void with_types(const AttentionJets& all, const F& run) {
  auto with_precision = [&](auto type) {
    if (all.precision == Precision::ieee)
      run(type, std::integral_constant<Precision, Precision::ieee>());
    else if (all.precision == Precision::tf32)
      run(type, std::integral_constant<Precision, Precision::tf32>());
    else
      run(type, std::integral_constant<Precision, Precision::bf16>());
  };
  if (all.half)
    with_precision(bf16());
  else
    with_precision(float());
}

}  // namespace

template <int UNITS>
void queue_attention_forward(const AttentionJets& jets, const AttentionOutput& to, void* stream) {
  with_types(jets, [&](auto type, auto precision) {
    launch_jets(attention_forward_kernel<decltype(type), precision(), UNITS>, jets, to, stream);
  });
}

template <int UNITS>
void queue_attention_backward(const AttentionJets& jets, const AttentionGradients& to, void* stream) {
  with_types(jets, [&](auto type, auto precision) {
    launch_jets(attention_backward_kernel<decltype(type), precision(), UNITS>, jets, to, stream);
  });
}

}  // namespace jetkern
