#include "../causal_attention.h"

#include <tuple>

#include "parallel.h"

namespace jetkern {

namespace {

// A batch's sets, from tensors q (T, H, d), k and v (T, G, d) whose last two dimensions are dense.
struct Batch {
  Batch(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& offsets, bool bf16)
      : starts(data<int64_t>(offsets, "offsets")), sets(offsets.size(0) - 1), heads(k.size(1)) {
    if (!heads || q.size(1) % heads || v.size(1) != heads || v.size(2) != q.size(2) ||
        k.size(2) != q.size(2) || k.size(0) != q.size(0) || v.size(0) != q.size(0))
      throw std::runtime_error("q, k and v do not fit each other");
    all = {};
    all.width = q.size(2);
    all.bf16 = bf16;
    all.group = q.size(1) / heads;
    all.q = rows<float>(q, "q", all.q_row);
    all.k = rows<float>(k, "k", all.k_row);
    all.v = rows<float>(v, "v", all.v_row);
    check_offsets(starts, sets, q.size(0));
  }

  // Calls work(set, first row, head of k and v, scratch) for each set and head of k and v.
  template <class F>
  void each(const F& work) const {
    auto chunks = split(sets * heads, 256, [&](int64_t i) {
      const double n = starts[i / heads + 1] - starts[i / heads];
      return n * (n + 64) + 1;
    });
    parallel(chunks.size() - 1, causal_attention_scratch(all.width), [&](int64_t c, float* scratch) {
      for (int64_t i = chunks[c]; i < chunks[c + 1]; i++) {
        const int64_t first = starts[i / heads], head = i % heads;
        CausalSet one = all;
        one.rows = starts[i / heads + 1] - first;
        one.q += first * all.q_row + head * all.group * all.width;
        one.k += first * all.k_row + head * all.width;
        one.v += first * all.v_row + head * all.width;
        work(one, first, head, scratch);
      }
    });
  }

  CausalSet all;
  const int64_t* starts;
  int64_t sets, heads;
};

}  // namespace

// -> out (T, H, d), softmax (T, H, 2)
std::tuple<Tensor, Tensor> causal_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                            const Tensor& offsets, bool bf16) {
  const Batch batch(q, k, v, offsets, bf16);
  const int64_t heads = q.size(1), row = heads * q.size(2);
  const int64_t group = batch.all.group, width = batch.all.width;
  Tensor out = torch::stable::new_empty(q, {q.size(0), heads, q.size(2)});
  Tensor softmax = torch::stable::new_empty(q, {q.size(0), heads, 2});
  float *to = data<float>(out, "out"), *ends = data<float>(softmax, "softmax");
  auto run = JETKERN_SELECT(causal_attention_forward);
  batch.each([&](const CausalSet& set, int64_t first, int64_t head, float* scratch) {
    run(set, to + first * row + head * group * width, row,
        ends + (first * heads + head * group) * 2, 2 * heads, scratch);
  });
  return {out, softmax};
}

// -> dq, dk, dv as q, k, v but contiguous
std::tuple<Tensor, Tensor, Tensor> causal_attention_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& offsets,
    bool bf16, const Tensor& out, const Tensor& softmax) {
  const Batch batch(q, k, v, offsets, bf16);
  const int64_t heads = q.size(1), width = q.size(2), row = heads * width;
  const int64_t group = batch.all.group, kv_row = batch.heads * width;
  Tensor dq = torch::stable::new_empty(q, {q.size(0), heads, width});
  Tensor dk = torch::stable::new_empty(q, {k.size(0), batch.heads, width});
  Tensor dv = torch::stable::new_empty(q, {k.size(0), batch.heads, width});
  const CausalGradients gradients{data<float>(dq, "dq"), data<float>(dk, "dk"),
                                  data<float>(dv, "dv"), row, kv_row, kv_row};
  const float *slopes = data<float>(dout, "dout"), *results = data<float>(out, "out");
  const float* ends = data<float>(softmax, "softmax");
  auto run = JETKERN_SELECT(causal_attention_backward);
  batch.each([&](const CausalSet& set, int64_t first, int64_t head, float* scratch) {
    const int64_t mine = first * row + head * group * width;
    CausalGradients to = gradients;
    to.dq += mine;
    to.dk += first * kv_row + head * width;
    to.dv += first * kv_row + head * width;
    run(set, results + mine, row, ends + (first * heads + head * group) * 2, 2 * heads,
        slopes + mine, to, scratch);
  });
  return {dq, dk, dv};
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern, CPU, m) {
  m.impl("causal_attention", TORCH_BOX(&jetkern::causal_attention));
  m.impl("causal_attention_backward", TORCH_BOX(&jetkern::causal_attention_backward));
}
