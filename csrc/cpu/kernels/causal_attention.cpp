#include "../causal_attention.h"

#include "gemm.h"
#include "lanes.h"
#include "math.h"

// Scores are kept transposed, (keys, queries): PANEL queries lie in the lanes of two vectors, so
// that softmax never works across lanes and heads of any width fill them. KEYS keys at a time are
// copied next to each other (rows of a tensor with many heads lie a power of two apart, where few of
// them fit into the first-level cache together) and seen by up to PANELS panels, each with a running
// maximum. A panel sees the keys up to its own last query; later ones are never touched.
namespace jetkern::JETKERN_ISA {

namespace {

constexpr float MINUS_INFINITY = -__builtin_inff();
constexpr int64_t KEYS = CausalSet::KEYS, QUERIES = CausalSet::PANELS * PANEL;
static_assert(QUERIES % KEYS == 0, "the keys of a block are new to all of a pass's panels or none");

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Lanes l, 0 <= l < W, as floats.
JETKERN_INLINE vfloat lanes() {
  vfloat v;
  for (int64_t i = 0; i < W; i++) v[i] = static_cast<float>(i);
  return v;
}

// The queries first to first + rows - 1, in the first `lanes` lanes (whole vectors) of a panel.
struct Panel {
  Panel(int64_t n, int64_t at)
      : first(at), rows(smaller(PANEL, n - at)), lanes(round_up(rows, W)), end(at + rows) {}
  int64_t first, rows, lanes, end;
};

// Score of key j for the queries in lanes c to c + W, -infinity for those before it.
JETKERN_INLINE vfloat score(const Panel& panel, vfloat product, float scale, int64_t j, int64_t c) {
  // Rounded, so that forward and backward see the same bits however the compiler fuses them.
  const vfloat s = rounded(product * scale);
  const int64_t before = j - panel.first - c;  // lanes whose query is before the key
  if (before <= 0) return s;
  return select(lanes() < static_cast<float>(before), splat(MINUS_INFINITY), s);
}

// Rows i of `to` = lane i of the vectors from[c * PANEL] times that lane of factor.
void store_rows(const float* from, const Panel& panel, int64_t width, const float* factor,
                float* to, int64_t row) {
  for (int64_t l = 0; l < panel.lanes; l += W) {
    const int64_t rows = smaller(W, panel.rows - l);
    for (int64_t c = 0; c < width; c += W) {
      const int64_t columns = smaller(W, width - c);
      vfloat block[W];
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; i++)
        block[i] = i < columns ? load(from + (c + i) * PANEL + l) * load(factor + l) : vfloat{};
      transpose(block);
#pragma GCC unroll 16
      for (int64_t i = 0; i < W; i++)
        if (i < rows) store_first(to + (l + i) * row + c, block[i], columns);
    }
  }
}

// Rows of `width` floats, `row` apart, next to each other.
void copy_rows(const float* from, int64_t row, int64_t rows, int64_t width, float* to) {
  for (int64_t i = 0; i < rows; i++, from += row, to += width)
    for (int64_t c = 0; c < width; c += W) {
      const int64_t columns = smaller(W, width - c);
      store_first(to + c, load_first(from + c, columns), columns);
    }
}

// Rows that lie `row` floats apart as a right factor: as they are, or rounded to tiles.
Right right_rows(const float* from, int64_t row, int64_t rows, int64_t columns, bool bf16,
                 float* tiles) {
  if (!in_tiles(rows, bf16)) return row_major(from, row);
  pack(from, row, 1, rows, columns, tiles, true);
  return packed(tiles, rows, true);
}

// What is kept of a panel while its keys go by.
struct Kept {
  Kept(float* at, int64_t width) : q(at) {
    mixed = q + width * PANEL;
    dout = mixed + width * PANEL;
    top = dout + width * PANEL;
    total = top + PANEL;
    share = total + PANEL;
  }
  static int64_t floats(int64_t width) { return (3 * width + 3) * PANEL; }
  float *q, *mixed, *dout;     // (width, queries)
  float *top, *total, *share;  // (queries): largest score, sum of weights, mean slope
};

struct Workspace {
  Workspace(float* scratch, int64_t width) : scores(scratch) {
    slopes = scores + KEYS * PANEL;
    k = slopes + KEYS * PANEL;
    v = k + KEYS * width;
    tiles = v + KEYS * width;
    panels = tiles + KEYS * PANEL + PANEL * (width + PANEL);  // of either shape
  }
  float *scores, *slopes;  // (keys, queries)
  float *k, *v;            // (keys, width)
  float* tiles;            // a right factor, rounded
  float* panels;           // what is kept of each

  Kept kept(int64_t panel, int64_t width) const {
    return Kept(panels + panel * Kept::floats(width), width);
  }
};

// The next keys of a set, as many as a block takes, copied.
int64_t take_keys(const CausalSet& set, int64_t block, int64_t end, const Workspace& work) {
  const int64_t keys = smaller(KEYS, end - block);
  copy_rows(set.k + block * set.k_row, set.k_row, keys, set.width, work.k);
  copy_rows(set.v + block * set.v_row, set.v_row, keys, set.width, work.v);
  return keys;
}

// Turns the products of a panel's queries with some keys into weights, relative to the largest score
// so far, to which what was kept of earlier keys is brought.
void softmax_of(const Panel& panel, int64_t block, int64_t keys, int64_t width, float scale,
                float* scores, const Kept& kept) {
  for (int64_t c = 0; c < panel.lanes; c += W) {
    float* column = scores + c;
    const vfloat before = block ? load(kept.top + c) : splat(MINUS_INFINITY);
    vfloat top = before;
    for (int64_t j = 0; j < keys; j++) {
      const vfloat s = score(panel, load(column + j * PANEL), scale, block + j, c);
      store(column + j * PANEL, s);
      top = max(top, s);
    }
    vfloat total{};
    for (int64_t j = 0; j < keys; j++) {
      const vfloat weight = exp(load(column + j * PANEL) - top);
      store(column + j * PANEL, weight);
      total += weight;
    }
    if (block) {
      const vfloat fade = exp(before - top);
      total += load(kept.total + c) * fade;
      for (int64_t i = c; i < width * PANEL; i += PANEL)
        store(kept.mixed + i, load(kept.mixed + i) * fade);
    }
    store(kept.top + c, top);
    store(kept.total + c, total);
  }
}

}  // namespace

void causal_attention_forward(const CausalSet& set, float* out, int64_t out_row, float* softmax,
                              int64_t softmax_row, float* scratch) {
  const int64_t d = set.width;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  const Workspace work(scratch, d);
  for (int64_t g = 0; g < set.group; g++)
    for (int64_t start = 0; start < set.rows; start += QUERIES) {
      const int64_t end = smaller(set.rows, start + QUERIES);
      for (int64_t first = start; first < end; first += PANEL) {
        const Kept kept = work.kept((first - start) / PANEL, d);
        pack(set.q + first * set.q_row + g * d, 1, set.q_row, d, Panel(end, first).rows, kept.q,
             set.bf16);
      }
      for (int64_t block = 0; block < end; block += KEYS) {
        const int64_t all = take_keys(set, block, end, work);
        for (int64_t first = start; first < end; first += PANEL) {
          const Panel panel(end, first);
          const int64_t keys = smaller(all, panel.end - block);
          if (keys <= 0) continue;
          const Kept kept = work.kept((first - start) / PANEL, d);
          gemm(keys, panel.lanes, d, work.k, d, 1, packed(kept.q, d, set.bf16), work.scores, PANEL,
               false);
          softmax_of(panel, block, keys, d, scale, work.scores, kept);
          gemm(d, panel.lanes, keys, work.v, 1, d,
               right_rows(work.scores, PANEL, keys, panel.lanes, set.bf16, work.tiles), kept.mixed,
               PANEL, block > 0);
        }
      }
      for (int64_t first = start; first < end; first += PANEL) {
        const Panel panel(end, first);
        const Kept kept = work.kept((first - start) / PANEL, d);
        for (int64_t c = 0; c < panel.lanes; c += W)
          store(kept.total + c, 1.0f / load(kept.total + c));
        store_rows(kept.mixed, panel, d, kept.total, out + first * out_row + g * d, out_row);
        for (int64_t i = 0; i < panel.rows; i++) {
          float* to = softmax + (first + i) * softmax_row + 2 * g;
          to[0] = kept.top[i];
          to[1] = kept.total[i];
        }
      }
    }
}

void causal_attention_backward(const CausalSet& set, const float* out, int64_t out_row,
                               const float* softmax, int64_t softmax_row, const float* dout,
                               const CausalGradients& to, float* scratch) {
  const int64_t d = set.width;
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(d));
  const Workspace work(scratch, d);
  float ones[PANEL];
  for (int64_t i = 0; i < PANEL; i++) ones[i] = 1.0f;
  for (int64_t g = 0; g < set.group; g++)
    for (int64_t start = 0; start < set.rows; start += QUERIES) {
      const int64_t end = smaller(set.rows, start + QUERIES);
      for (int64_t first = start; first < end; first += PANEL) {
        const Panel panel(end, first);
        const Kept kept = work.kept((first - start) / PANEL, d);
        const float* back = dout + first * out_row + g * d;
        pack(set.q + first * set.q_row + g * d, 1, set.q_row, d, panel.rows, kept.q, set.bf16);
        pack(back, 1, out_row, d, panel.rows, kept.dout);
        pack(out + first * out_row + g * d, 1, out_row, d, panel.rows, kept.mixed);
        for (int64_t c = 0; c < panel.lanes; c += W) {
          vfloat share{};  // in the order of the products: the first row's slopes vanish exactly
          for (int64_t i = c; i < d * PANEL; i += PANEL)
            share += load(kept.dout + i) * load(kept.mixed + i);
          store(kept.share + c, share);
        }
        if (in_tiles(d, set.bf16)) pack(back, 1, out_row, d, panel.rows, kept.dout, true);
        for (int64_t i = 0; i < panel.lanes; i++) {
          const float* ends = softmax + (first + i) * softmax_row + 2 * g;
          kept.top[i] = i < panel.rows ? ends[0] : 0.0f;
          kept.total[i] = i < panel.rows ? ends[1] : 0.0f;
        }
      }
      for (int64_t block = 0; block < end; block += KEYS) {
        const int64_t all = take_keys(set, block, end, work);
        // Only the last panels see these keys first, and heads of a group share them.
        bool add = g > 0 || block < start;
        // From the last panel, which sees all of these keys and so begins their gradients.
        for (int64_t first = start + (end - start - 1) / PANEL * PANEL; first >= start;
             first -= PANEL) {
          const Panel panel(end, first);
          const int64_t keys = smaller(all, panel.end - block);
          if (keys <= 0) break;
          const Kept kept = work.kept((first - start) / PANEL, d);
          gemm(keys, panel.lanes, d, work.k, d, 1, packed(kept.q, d, set.bf16), work.scores, PANEL,
               false);
          gemm(keys, panel.lanes, d, work.v, d, 1, packed(kept.dout, d, set.bf16), work.slopes,
               PANEL, false);
          for (int64_t c = 0; c < panel.lanes; c += W) {
            const vfloat top = load(kept.top + c), inverse = load(kept.total + c);
            const vfloat share = load(kept.share + c);
            for (int64_t j = 0; j < keys; j++) {
              float *weight = work.scores + j * PANEL + c, *ds = work.slopes + j * PANEL + c;
              const vfloat s = score(panel, load(weight), scale, block + j, c);
              const vfloat p = exp(s - top) * inverse;
              store(weight, p);
              store(ds, p * (load(ds) - share) * scale);
            }
          }
          gemm(keys, d, panel.rows, work.scores, PANEL, 1,
               right_rows(dout + first * out_row + g * d, out_row, panel.rows, d, set.bf16,
                          work.tiles), to.dv + block * to.dv_row,
               to.dv_row, add);
          gemm(keys, d, panel.rows, work.slopes, PANEL, 1,
               right_rows(set.q + first * set.q_row + g * d, set.q_row, panel.rows, d, set.bf16,
                          work.tiles), to.dk + block * to.dk_row,
               to.dk_row, add);
          gemm(d, panel.lanes, keys, work.k, 1, d,
               right_rows(work.slopes, PANEL, keys, panel.lanes, set.bf16, work.tiles), kept.mixed,
               PANEL, block > 0);
          add = true;
        }
      }
      for (int64_t first = start; first < end; first += PANEL) {
        const Kept kept = work.kept((first - start) / PANEL, d);
        store_rows(kept.mixed, Panel(end, first), d, ones, to.dq + first * to.dq_row + g * d,
                   to.dq_row);
      }
    }
}

}  // namespace jetkern::JETKERN_ISA
