#include "../attention.h"

#include <cmath>
#include <optional>
#include <tuple>

#include "parallel.h"

namespace jetkern {

namespace {

// A batch's jets, from tensors q (Tq, H, d), k and v (Tk, H, d) whose last two dimensions are dense.
struct Batch {
  Batch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& query_offsets,
        const Tensor& key_offsets, const std::optional<Tensor>& bias,
        const std::optional<Tensor>& particle_offsets, const std::optional<Tensor>& jet_keys,
        double dropout_p)
      : query_rows(data<int64_t>(query_offsets, "query_offsets")),
        key_rows(data<int64_t>(key_offsets, "key_offsets")),
        jets(query_offsets.size(0) - 1) {
    all = {};
    all.heads = q.size(1);
    all.width = q.size(2);
    all.q = rows<float>(q, "q", all.q_row);
    all.k = rows<float>(k, "k", all.k_row);
    all.v = rows<float>(v, "v", all.v_row);
    if (key_offsets.size(0) != jets + 1)
      throw std::runtime_error("query_offsets and key_offsets differ in length");
    check_offsets(query_rows, jets, q.size(0));
    check_offsets(key_rows, jets, k.size(0));
    if (jet_keys) {
      if (jet_keys->size(0) != jets) throw std::runtime_error("jet_keys must have one of each jet");
      keys = data<int64_t>(*jet_keys, "jet_keys");
      all.dropped = static_cast<int64_t>(std::floor(dropout_p * (1 << 23) + 0.5));
      all.kept = static_cast<float>(1.0 / (1.0 - dropout_p));
    }
    if (!bias) return;
    if (!particle_offsets || particle_offsets->size(0) != jets + 1)
      throw std::runtime_error("particle_offsets must be as long as query_offsets");
    const int64_t* particles = data<int64_t>(*particle_offsets, "particle_offsets");
    check_offsets(particles, jets, particles[jets]);
    all.bias = data<float>(*bias, "bias");
    all.bias_head = bias->size(1);
    pair_starts.assign(1, 0);
    for (int64_t b = 0; b < jets; b++) {
      int64_t n = particles[b + 1] - particles[b];
      if (n > query_rows[b + 1] - query_rows[b] || n > key_rows[b + 1] - key_rows[b])
        throw std::runtime_error("a jet has more particles than queries or keys");
      counts.push_back(n);
      pair_starts.push_back(pair_starts.back() + n * n);
    }
    if (pair_starts.back() != all.bias_head)
      throw std::runtime_error("bias must have one column for each pair of particles");
  }

  AttentionJet jet(int64_t b) const {
    AttentionJet one = all;
    one.queries = query_rows[b + 1] - query_rows[b];
    one.keys = key_rows[b + 1] - key_rows[b];
    one.q += query_rows[b] * all.q_row;
    one.k += key_rows[b] * all.k_row;
    one.v += key_rows[b] * all.v_row;
    if (keys) one.key = static_cast<uint64_t>(keys[b]);
    if (all.bias) {
      one.particles = counts[b];
      one.bias += pair_starts[b];
    }
    return one;
  }

  // Calls work(b, scratch) for every jet.
  template <class F>
  void each(const F& work) const {
    auto chunks = split(jets, 256, [&](int64_t b) {
      double queries = query_rows[b + 1] - query_rows[b], keys = key_rows[b + 1] - key_rows[b];
      return queries * (keys + 16) + keys + 1;
    });
    int64_t floats =
        attention_scratch(longest(query_rows, jets), longest(key_rows, jets), all.width);
    parallel(chunks.size() - 1, floats, [&](int64_t c, float* scratch) {
      for (int64_t b = chunks[c]; b < chunks[c + 1]; b++) work(b, scratch);
    });
  }

  AttentionJet all;
  const int64_t *query_rows, *key_rows, *keys = nullptr;
  int64_t jets;
  std::vector<int64_t> counts, pair_starts;
};

}  // namespace

// -> out (Tq, H, d), softmax (Tq, H, 2)
std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& query_offsets, const Tensor& key_offsets,
                                     std::optional<Tensor> bias,
                                     std::optional<Tensor> particle_offsets,
                                     std::optional<Tensor> jet_keys, double dropout_p) {
  Batch batch(q, k, v, query_offsets, key_offsets, bias, particle_offsets, jet_keys, dropout_p);
  const int64_t heads = q.size(1), row = heads * q.size(2);
  Tensor out = torch::stable::new_empty(q, {q.size(0), heads, q.size(2)});
  Tensor softmax = torch::stable::new_empty(q, {q.size(0), heads, 2});
  float *to = data<float>(out, "out"), *ends = data<float>(softmax, "softmax");
  auto run = JETKERN_SELECT(attention_forward);
  batch.each([&](int64_t b, float* scratch) {
    int64_t first = batch.query_rows[b];
    run(batch.jet(b), to + first * row, row, ends + first * heads * 2, scratch);
  });
  return {out, softmax};
}

// -> dq, dk, dv as q, k, v but contiguous; dbias as bias, or empty if not wanted
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& query_offsets, const Tensor& key_offsets, std::optional<Tensor> bias,
    std::optional<Tensor> particle_offsets, std::optional<Tensor> jet_keys, double dropout_p,
    const Tensor& softmax, bool want_bias) {
  Batch batch(q, k, v, query_offsets, key_offsets, bias, particle_offsets, jet_keys, dropout_p);
  const int64_t heads = q.size(1), row = heads * q.size(2);
  Tensor dq = torch::stable::new_empty(q, {q.size(0), heads, q.size(2)});
  Tensor dk = torch::stable::new_empty(q, {k.size(0), heads, q.size(2)});
  Tensor dv = torch::stable::new_empty(q, {k.size(0), heads, q.size(2)});
  want_bias = want_bias && bias;
  Tensor dbias = want_bias ? torch::stable::empty_like(*bias) : torch::stable::new_empty(q, {0});
  AttentionGradients gradients{data<float>(dq, "dq"), data<float>(dk, "dk"), data<float>(dv, "dv"),
                               want_bias ? data<float>(dbias, "dbias") : nullptr, row, row, row,
                               false};
  int64_t dout_row;
  const float* slopes = rows<float>(dout, "dout", dout_row);
  const float* ends = data<float>(softmax, "softmax");
  auto run = JETKERN_SELECT(attention_backward);
  batch.each([&](int64_t b, float* scratch) {
    int64_t query = batch.query_rows[b], key = batch.key_rows[b];
    AttentionGradients to = gradients;
    to.dq += query * row;
    to.dk += key * row;
    to.dv += key * row;
    if (to.dbias) to.dbias += batch.pair_starts[b];
    run(batch.jet(b), ends + query * heads * 2, slopes + query * dout_row,
        dout_row, to, scratch);
  });
  return {dq, dk, dv, dbias};
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("attention", TORCH_BOX(&jetkern::attention));
  m.impl("attention_backward", TORCH_BOX(&jetkern::attention_backward));
}
