#include "pair_features.h"
#include "transformer.h"

namespace jetkern::JETKERN_ISA {
namespace {

// Centres lie in lanes: a group is W consecutive particles, its slot k their k-th neighbours. A
// tile is a few groups, so that what backward needs of it stays in the second-level cache and a
// weight's gradient is summed over many slots at once.
constexpr int64_t TILE_BYTES = 1 << 20, MOST_GROUPS = 4;

// Vectors that the backward keeps per slot.
int64_t vectors_per_slot(const LocalShape& shape) {
  const int64_t width = shape.block.width;
  return 3 * shape.embed.hidden +
         shape.blocks * (8 * width + 3 * shape.block.mlp.hidden +
                         shape.block.heads * shape.neighbours);
}

int64_t groups_per_tile(const LocalShape& shape) {
  if (shape.block.width >= 128) return 2;
  const int64_t bytes = vectors_per_slot(shape) * shape.neighbours * W * int64_t(sizeof(float));
  const int64_t groups = bytes ? TILE_BYTES / bytes : MOST_GROUPS;
  return groups < 1 ? 1 : groups > MOST_GROUPS ? MOST_GROUPS : groups;
}

struct Network {
  Mlp embed;
  Block block[LocalShape::MOST_BLOCKS];
};

void make_net(const LocalShape& shape, Layout& layout, Network& net) {
  net.embed = make_mlp(shape.embed, {}, layout);
  for (int64_t b = 0; b < shape.blocks; b++) net.block[b] = make_block(shape.block, layout);
}

// The tokens of a tile: group g owns slots first[g] .. first[g + 1].
struct Tokens {
  int64_t groups, slots, first[MOST_GROUPS + 1];
  float* features;  // (slots, 7)
  float* exists;    // a vector per slot, 1 where the token exists and 0 elsewhere
  float* inverse;   // a vector per group, 1 / number of neighbours (0 without any)
};

constexpr int64_t FEATURES = 7;

// [x_i - x_j, ln m^2, ln dR, ln kT] of the pairs in the lanes.
JETKERN_INLINE void edge_features(const vfloat (&a)[4], const vfloat (&b)[4], vfloat exists,
                                  float* to) {
  for (int64_t c = 0; c < 4; c++) store(to + c * W, (a[c] - b[c]) * exists);
  const PairFeatures pair =
      pair_features(a[0] - b[0], a[1] - b[1], a[2] + b[2], min(a[2], b[2]));
  store(to + 4 * W, pair.ln_m2 * exists);
  store(to + 5 * W, pair.ln_r * exists);
  store(to + 6 * W, pair.ln_kt * exists);
}

// Gradients of both particles from that of the pair's features.
JETKERN_INLINE void edge_backward(const float* features, const float* d_features, vfloat (&first)[4],
                                  vfloat (&second)[4]) {
  const vfloat eta = load(features), phi = load(features + W);
  const PairSlopes slopes = pair_slopes(
      eta, phi, {load(d_features + 4 * W), load(d_features + 5 * W), load(d_features + 6 * W)});
  for (int64_t c = 0; c < 4; c++) {
    first[c] = load(d_features + c * W);
    second[c] = -first[c];
  }
  const vfloat share = share_of_first(load(features + 2 * W)) * slopes.min_ln_pt;
  first[0] += slopes.eta;
  first[1] += slopes.phi;
  first[2] += slopes.sum_ln_pt + share;
  second[0] -= slopes.eta;
  second[1] -= slopes.phi;
  second[2] += slopes.sum_ln_pt + (slopes.min_ln_pt - share);
}

// Gathers the tokens of centres first .. last. Returns false if a neighbour is out of range.
bool gather(const LocalShape& shape, const float* particles, const int64_t* neighbours,
            int64_t first, int64_t last, Tokens& tokens) {
  const int64_t K = shape.neighbours;
  tokens.groups = 0;
  tokens.slots = 0;
  bool inside = true;
  for (int64_t begin = first; begin < last; begin += W) {
    const int64_t centres = last - begin < W ? last - begin : W;
    const int64_t slot = tokens.slots;
    tokens.first[tokens.groups] = slot;
    int64_t counts[W], most = 0;
    for (int64_t l = 0; l < W; l++) {
      counts[l] = 0;
      if (l >= centres) continue;
      for (int64_t k = 0; k < K; k++) {
        const int64_t j = neighbours[(begin + l) * K + k];
        if (j >= shape.particles) inside = false;
        counts[l] += j >= 0 && j < shape.particles;
      }
      most = counts[l] > most ? counts[l] : most;
    }
    alignas(64) float lanes[4][W] = {}, inverse[W];
    for (int64_t l = 0; l < W; l++) {
      inverse[l] = counts[l] ? 1.0f / (float(counts[l]) + 1e-9f * float(K)) : 0.0f;
      for (int64_t c = 0; c < 4 && l < centres; c++) lanes[c][l] = particles[(begin + l) * 4 + c];
    }
    store(tokens.inverse + tokens.groups * W, load(inverse));
    vfloat centre[4];
    for (int64_t c = 0; c < 4; c++) centre[c] = load(lanes[c]);
    int64_t next[W] = {};
    for (int64_t k = 0; k < most; k++) {
      float exists[W];
      for (int64_t l = 0; l < W; l++) {
        exists[l] = k < counts[l];
        int64_t j = l < centres ? begin + l : 0;
        if (k < counts[l]) {
          const int64_t* row = neighbours + (begin + l) * K;
          while (row[next[l]] < 0 || row[next[l]] >= shape.particles) next[l]++;
          j = row[next[l]++];
        }
        for (int64_t c = 0; c < 4; c++) lanes[c][l] = particles[j * 4 + c];
      }
      vfloat other[4];
      for (int64_t c = 0; c < 4; c++) other[c] = load(lanes[c]);
      store(tokens.exists + tokens.slots * W, load(exists));
      edge_features(centre, other, load(exists),
                    tokens.features + tokens.slots * slot_row(FEATURES) * W);
      tokens.slots++;
    }
    tokens.groups++;
  }
  tokens.first[tokens.groups] = tokens.slots;
  return inside;
}

// Scores of one head to attention weights, in place; (n, n) vectors.
void softmax(float* scores, int64_t n, float scale, const float* exists) {
  for (int64_t i = 0; i < n; i++) {
    float* row = scores + i * n * W;
    vfloat top = splat(-1e30f);
    for (int64_t j = 0; j < n; j++) {
      const vfloat score = select(load(exists + j * W) > 0.0f, load(row + j * W) * scale,
                                  splat(-1e30f));
      store(row + j * W, score);
      top = max(top, score);
    }
    vfloat total{};
    for (int64_t j = 0; j < n; j++) {
      const vfloat e = exp(load(row + j * W) - top);
      store(row + j * W, e);
      total += e;
    }
    const vfloat inverse = 1.0f / total;
    for (int64_t j = 0; j < n; j++) store(row + j * W, load(row + j * W) * inverse);
  }
}

// Attention among the slots of each group; `weights` (heads, n, n) vectors per group, one after the
// other if `keep`, else overwritten.
void attend(const BlockShape& shape, const BlockTile& tile, const Tokens& tokens, float* weights,
            bool keep) {
  const int64_t width = shape.width, d = width / shape.heads;
  const int64_t row = slot_row(width) * W, row3 = slot_row(3 * width) * W;
  const float scale = 1.0f / __builtin_sqrtf(float(d));
  for (int64_t g = 0; g < tokens.groups; g++) {
    const int64_t first = tokens.first[g], n = tokens.first[g + 1] - first;
    for (int64_t h = 0; h < shape.heads; h++) {
      const float* q = tile.qkv + first * row3 + h * d * W;
      lanewise(n, n, d, {q, row3, W}, {q + width * W, row3, W}, weights, n * W, W);
      softmax(weights, n, scale, tokens.exists + first * W);
      lanewise(n, d, n, {weights, n * W, W}, {q + 2 * width * W, W, row3},
               tile.mixed + first * row + h * d * W, row, W);
      if (keep) weights += n * n * W;
    }
  }
}

// d_qkv from d_mixed. `scratch` holds n * n vectors.
void attend_backward(const BlockShape& shape, const BlockTile& tile, const Tokens& tokens,
                     const float* weights, const float* d_mixed, float* d_qkv, float* scratch) {
  const int64_t width = shape.width, d = width / shape.heads;
  const int64_t row = slot_row(width) * W, row3 = slot_row(3 * width) * W;
  const float scale = 1.0f / __builtin_sqrtf(float(d));
  for (int64_t g = 0; g < tokens.groups; g++) {
    const int64_t first = tokens.first[g], n = tokens.first[g + 1] - first;
    for (int64_t h = 0; h < shape.heads; h++, weights += n * n * W) {
      const float* q = tile.qkv + first * row3 + h * d * W;
      const float* d_out = d_mixed + first * row + h * d * W;
      float* dq = d_qkv + first * row3 + h * d * W;
      lanewise(n, n, d, {d_out, row, W}, {q + 2 * width * W, row3, W}, scratch, n * W, W);
      lanewise(n, d, n, {weights, W, n * W}, {d_out, W, row}, dq + 2 * width * W, row3, W);
      for (int64_t i = 0; i < n; i++) {
        const float* p = weights + i * n * W;
        float* ds = scratch + i * n * W;
        vfloat dot{};
        for (int64_t j = 0; j < n; j++) dot += load(p + j * W) * load(ds + j * W);
        for (int64_t j = 0; j < n; j++)
          store(ds + j * W, load(p + j * W) * (load(ds + j * W) - dot) * scale);
      }
      lanewise(n, d, n, {scratch, n * W, W}, {q + width * W, W, row3}, dq, row3, W);
      lanewise(n, d, n, {scratch, W, n * W}, {q, W, row3}, dq + width * W, row3, W);
    }
  }
}

// to[g] = sum over the group's slots of x * exists, times inverse; (groups, n).
void mean(const float* x, int64_t n, const Tokens& tokens, float* to) {
  const int64_t row = slot_row(n);
  for (int64_t g = 0; g < tokens.groups; g++) {
    const vfloat inverse = load(tokens.inverse + g * W);
    for (int64_t i = 0; i < n; i++) {
      vfloat total{};
      for (int64_t s = tokens.first[g]; s < tokens.first[g + 1]; s++)
        total += load(x + (s * row + i) * W) * load(tokens.exists + s * W);
      store(to + (g * row + i) * W, total * inverse);
    }
  }
}

// From the gradient of the tokens' features: rows first .. last of d_particles and d_edges.
void particles_backward(const LocalShape& shape, const Tokens& tokens, const float* d_features,
                        int64_t first, int64_t last, float* d_particles, float* d_edges) {
  const int64_t K = shape.neighbours;
  for (int64_t g = 0; g < tokens.groups; g++) {
    const int64_t begin = first + g * W, centres = last - begin < W ? last - begin : W;
    vfloat sum[4] = {};
    for (int64_t s = tokens.first[g]; s < tokens.first[g + 1]; s++) {
      vfloat one[4], other[4];
      edge_backward(tokens.features + s * slot_row(FEATURES) * W,
                    d_features + s * slot_row(FEATURES) * W, one, other);
      const vint exists = load(tokens.exists + s * W) > 0.0f;
      for (int64_t c = 0; c < 4; c++) {
        sum[c] += select(exists, one[c], vfloat{});
        for (int64_t l = 0; l < centres; l++)
          d_edges[((begin + l) * K + s - tokens.first[g]) * 4 + c] = other[c][l];
      }
    }
    for (int64_t c = 0; c < 4; c++)
      for (int64_t l = 0; l < centres; l++) d_particles[(begin + l) * 4 + c] = sum[c][l];
  }
}

// Everything that a tile needs. Without `backward` the insides of all blocks share their memory.
struct Workspace {
  Tokens tokens;
  MlpTile embed;
  BlockTile block[LocalShape::MOST_BLOCKS];
  float *weights[LocalShape::MOST_BLOCKS], *x, *mean_x, *mean_hidden, *result;
  float *d_result, *d_hidden, *dx, *d_mixed, *d_qkv, *d_scores, *d_features, *scratch, *room;
};

void make_workspace(const LocalShape& shape, bool backward, Workspace& work, Arena& arena) {
  const int64_t groups = groups_per_tile(shape), slots = groups * shape.neighbours;
  const int64_t width = shape.block.width, hidden = shape.block.mlp.hidden;
  const int64_t scores = shape.neighbours * shape.neighbours * W;
  work.tokens.features = arena.take(tile_size(slots, FEATURES));
  work.tokens.exists = arena.take(slots * W);
  work.tokens.inverse = arena.take(groups * W);
  work.mean_x = arena.take(tile_size(groups, width));
  work.mean_hidden = arena.take(tile_size(groups, hidden));
  work.result = arena.take(tile_size(groups, width));
  const int64_t room = room_size(shape.block, slots), embed_room = room_size(shape.embed, slots);
  work.room = arena.take(room > embed_room ? room : embed_room);
  work.embed = take_mlp_tile(shape.embed, slots, arena);
  for (int64_t b = 0; b < shape.blocks; b++) {
    if (b && !backward) {
      work.block[b] = work.block[0];
      work.weights[b] = work.weights[0];
    } else {
      work.block[b] = take_block_tile(shape.block, slots, arena);
      work.weights[b] = arena.take(scores * (backward ? groups * shape.block.heads : 1));
    }
  }
  if (!backward) return;
  work.d_result = arena.take(tile_size(groups, width));
  work.d_hidden = arena.take(tile_size(groups, hidden));
  work.dx = arena.take(tile_size(slots, width));
  work.d_mixed = arena.take(tile_size(slots, width));
  work.d_qkv = arena.take(tile_size(slots, 3 * width));
  work.d_scores = arena.take(scores);
  work.d_features = arena.take(tile_size(slots, FEATURES));
  const int64_t most = hidden > shape.embed.hidden ? hidden : shape.embed.hidden;
  work.scratch = arena.take(tile_size(slots, most) + tile_size(slots, width));
}

// Runs the tile forward to the means of the last block's residual and of its hidden vector.
void run_tile(const LocalShape& shape, const Network& net, Workspace& work, bool keep) {
  const Tokens& tokens = work.tokens;
  mlp_hidden(net.embed, tokens.features, tokens.slots, work.embed, keep);
  mlp_out(net.embed, work.embed, tokens.slots, work.block[0].in, nullptr);
  for (int64_t b = 0; b < shape.blocks; b++) {
    const bool last = b + 1 == shape.blocks;
    before_attention(net.block[b], work.block[b], tokens.slots);
    attend(shape.block, work.block[b], tokens, work.weights[b], keep);
    after_attention(net.block[b], work.block[b], tokens.slots, keep,
                    last ? nullptr : work.block[b + 1].in);
  }
  // The last fc2 is linear: it acts on the mean of the hidden vectors.
  const BlockTile& final = work.block[shape.blocks - 1];
  mean(final.middle, shape.block.width, tokens, work.mean_x);
  mean(final.mlp.normed, shape.block.mlp.hidden, tokens, work.mean_hidden);
}

}  // namespace

int64_t local_block_panels(const LocalShape& shape, bool backward) {
  Network net;
  Layout layout{nullptr, {nullptr}, false, backward, nullptr};
  make_net(shape, layout, net);
  return layout.panels.used;
}

GradientSize local_block_gradient(const LocalShape& shape) {
  Network net;
  Layout layout{nullptr, {nullptr}, false, false, nullptr};
  make_net(shape, layout, net);
  return layout.gradient;
}

void local_block_pack(const LocalShape& shape, const float* const* weights, bool backward,
                      float* panels) {
  Network net;
  Layout layout{weights, {panels}, true, backward, nullptr};
  make_net(shape, layout, net);
}

int64_t local_block_tile(const LocalShape& shape) { return groups_per_tile(shape) * W; }

int64_t local_block_scratch(const LocalShape& shape, bool backward) {
  Workspace work;
  Arena arena{nullptr};
  make_workspace(shape, backward, work, arena);
  return arena.used;
}

// Rows first .. last of the result, at most local_block_tile of them.
bool local_block_forward(const LocalShape& shape, const float* const* weights, float* panels,
                         const float* particles, const int64_t* neighbours, int64_t first,
                         int64_t last, float* out, float* scratch) {
  Workspace work;
  Arena arena{scratch};
  make_workspace(shape, false, work, arena);
  Network net;
  Layout layout{weights, {panels}, false, false, work.room};
  make_net(shape, layout, net);
  const bool inside = gather(shape, particles, neighbours, first, last, work.tokens);
  run_tile(shape, net, work, false);
  const int64_t width = shape.block.width, row = slot_row(width);
  const Mlp& mlp = net.block[shape.blocks - 1].mlp;
  product(mlp.fc2.forward, work.mean_hidden, slot_row(mlp.shape.hidden), work.result, row,
          work.tokens.groups, mlp.bias2.data, work.mean_x, work.room);
  for (int64_t g = 0; g < work.tokens.groups; g++) {
    const vfloat inverse = load(work.tokens.inverse + g * W);
    float* slot = work.result + g * row * W;
    for (int64_t i = 0; i < width; i++)  // without neighbours: exactly zero, no bias either
      store(slot + i * W, select(inverse > 0.0f, load(slot + i * W), vfloat{}));
    const int64_t begin = first + g * W, count = last - begin < W ? last - begin : W;
    slot_to_rows(slot, width, count, out + begin * width, width);
  }
  return inside;
}

// Adds the gradient of the folded weights that rows first .. last contribute. Unless null, writes
// those rows of d_particles, the gradient of the centres, and of d_edges (particles, K, 4), that of
// the neighbours that there are, in their order.
bool local_block_backward(const LocalShape& shape, const float* const* weights, float* panels,
                          const float* particles, const int64_t* neighbours, const float* d_out,
                          int64_t first, int64_t last, const Gradient& gradient,
                          float* d_particles, float* d_edges, float* scratch) {
  Workspace work;
  Arena arena{scratch};
  make_workspace(shape, true, work, arena);
  Network net;
  Layout layout{weights, {panels}, false, true, work.room};
  make_net(shape, layout, net);
  const Tokens& tokens = work.tokens;
  const bool inside = gather(shape, particles, neighbours, first, last, work.tokens);
  run_tile(shape, net, work, true);

  const int64_t width = shape.block.width, row = slot_row(width), final = shape.blocks - 1;
  const Mlp& mlp = net.block[final].mlp;
  const int64_t hidden = mlp.shape.hidden, hidden_row = slot_row(hidden);
  for (int64_t g = 0; g < tokens.groups; g++) {
    const int64_t begin = first + g * W, count = last - begin < W ? last - begin : W;
    const vfloat some = load(tokens.inverse + g * W) > 0.0f ? splat(1.0f) : vfloat{};
    float* slot = work.d_result + g * row * W;
    rows_to_slot(d_out + begin * width, width, width, count, slot);
    for (int64_t i = 0; i < width; i++) store(slot + i * W, load(slot + i * W) * some);
  }
  weight_backward(mlp.fc2, work.d_result, work.mean_hidden, tokens.groups, gradient, work.room);
  bias_backward(mlp.bias2, work.d_result, width, tokens.groups, gradient);
  product(mlp.fc2.backward, work.d_result, row, work.d_hidden, hidden_row, tokens.groups, nullptr,
          nullptr, work.room);
  // The share of a token in its group's mean.
  for (int64_t g = 0; g < tokens.groups; g++)
    for (int64_t s = tokens.first[g]; s < tokens.first[g + 1]; s++) {
      float* share = work.tokens.exists + s * W;
      store(share, load(share) * load(tokens.inverse + g * W));
    }
  double d_alpha = 0.0, d_alpha2 = 0.0;
  const BlockTile& tile = work.block[final];
  float* d_normed = work.scratch;
  for (int64_t g = 0; g < tokens.groups; g++)
    for (int64_t s = tokens.first[g], step; s < tokens.first[g + 1]; s += step) {
      const int64_t left = tokens.first[g + 1] - s;
      step = chain(mlp.shape, left);
      const int64_t at = s * hidden_row * W;
      const MlpTile part{tile.mlp.normed + at, tile.mlp.gelu + at, tile.mlp.slope + at};
      d_alpha += mlp_hidden_backward(mlp, part, work.d_hidden + g * hidden_row * W, 0,
                                     tokens.exists + s * W, step, d_normed);
      const int64_t begin = s * row * W;
      for (int64_t n = s; n < s + step; n++) {
        const vfloat share = load(tokens.exists + n * W);
        for (int64_t i = 0; i < width; i++)
          store(work.dx + (n * row + i) * W, load(work.d_result + (g * row + i) * W) * share);
      }
      d_alpha2 += norm_backward(tile.middle + begin, tile.normed2 + begin, d_normed,
                                net.block[final].alpha2.value(), width, step, work.dx + begin);
    }
  if (mlp.shape.norm) add_alpha(mlp.alpha, d_alpha, gradient);
  add_alpha(net.block[final].alpha2, d_alpha2, gradient);
  fc1_backward(mlp, tile.mlp, tile.normed2, tokens.slots, gradient);
  for (int64_t b = final; b >= 0; b--) {
    if (b < final)
      after_attention_backward(net.block[b], work.block[b], tokens.slots, work.dx, gradient,
                               work.scratch);
    out_backward(net.block[b], work.block[b], tokens.slots, work.dx, work.d_mixed, gradient);
    attend_backward(shape.block, work.block[b], tokens, work.weights[b], work.d_mixed, work.d_qkv,
                    work.d_scores);
    before_attention_backward(net.block[b], work.block[b], tokens.slots, work.d_qkv, work.dx,
                              gradient, work.scratch);
  }
  mlp_backward(net.embed, work.embed, tokens.features, work.dx, tokens.slots,
               d_particles ? work.d_features : nullptr, gradient, work.scratch);
  if (d_particles)
    particles_backward(shape, tokens, work.d_features, first, last, d_particles, d_edges);
  return inside;
}

void local_block_unfold(const LocalShape& shape, const float* const* weights, const double* alphas,
                        float* gradient) {
  Network net;
  Layout layout{weights, {nullptr}, false, false, nullptr};
  make_net(shape, layout, net);
  unfold(net.embed, alphas, gradient);
  for (int64_t b = 0; b < shape.blocks; b++) unfold(net.block[b], alphas, gradient);
}

}  // namespace jetkern::JETKERN_ISA
