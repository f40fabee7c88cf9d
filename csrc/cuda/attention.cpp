#include "attention.h"

#include <optional>
#include <tuple>

#include "torch.h"

namespace jetkern {

namespace {

// A (T, heads, width) tensor with rows that are dense and begin at multiples of 16 bytes: the given
// one, as slices of a projection are, or a copy.
struct Rows {
  Rows(const Tensor& t, const Tensor& like, const char* name) : tensor(t) {
    const auto bytes = static_cast<int64_t>(like.element_size());
    if (static_cast<int64_t>(t.element_size()) != bytes || t.size(1) != like.size(1) ||
        t.size(2) != like.size(2))
      throw std::runtime_error(std::string(name) + " must have the heads, width and dtype of q");
    const bool dense = t.stride(2) == 1 && (t.size(1) == 1 || t.stride(1) == t.size(2));
    if (!dense || t.stride(0) * bytes % 16 || reinterpret_cast<uintptr_t>(t.data_ptr()) % 16) {
      tensor = torch::stable::new_empty(t, {t.size(0), t.size(1), t.size(2)});
      torch::stable::copy_(tensor, t);
    }
  }

  const void* data() const { return tensor.data_ptr(); }
  int64_t row() const { return tensor.stride(0); }

  Tensor tensor;
};

// Offsets are read on the GPU only, and so are not checked.
const int64_t* jet_offsets(const Tensor& t, int64_t jets, const char* name) {
  if (t.size(0) != jets + 1)
    throw std::runtime_error(std::string(name) + " differ in length from query_offsets");
  return data<int64_t>(t, name);
}

AttentionJets batch(const Rows& q_rows, const Rows& k_rows, const Rows& v_rows,
                    const Tensor& query_offsets, const Tensor& key_offsets,
                    const std::optional<Tensor>& bias,
                    const std::optional<Tensor>& particle_offsets,
                    const std::optional<Tensor>& pair_offsets, double scale, int64_t precision) {
  const Tensor& q = q_rows.tensor;
  AttentionJets all = {};
  all.jets = query_offsets.size(0) - 1;
  all.queries = q.size(0);
  if (all.jets > INT32_MAX || q.size(1) > 65535) throw std::runtime_error("too many jets or heads");
  all.heads = static_cast<int>(q.size(1));
  all.width = static_cast<int>(q.size(2));
  if (all.width != 8 && all.width != 16 && all.width != 32)
    throw std::runtime_error("heads must have a width of 8, 16 or 32");
  if (precision < 0 || precision > static_cast<int64_t>(Precision::bf16))
    throw std::runtime_error("unknown precision");
  if (!(scale > 0)) throw std::runtime_error("scale must be positive");
  all.half = q.element_size() == sizeof(bf16);
  all.precision = static_cast<Precision>(precision);
  all.scale = static_cast<float>(scale);
  if (!all.half && q.element_size() != sizeof(float))
    throw std::runtime_error("q must be float32 or bfloat16");
  all.q = q_rows.data();
  all.k = k_rows.data();
  all.v = v_rows.data();
  all.q_row = q_rows.row();
  all.k_row = k_rows.row();
  all.v_row = v_rows.row();
  all.query_offsets = jet_offsets(query_offsets, all.jets, "query_offsets");
  all.key_offsets = jet_offsets(key_offsets, all.jets, "key_offsets");
  if (!bias) return all;
  if (!particle_offsets || !pair_offsets)
    throw std::runtime_error("a bias needs particle_offsets and pair_offsets");
  all.particle_offsets = jet_offsets(*particle_offsets, all.jets, "particle_offsets");
  all.pair_offsets = jet_offsets(*pair_offsets, all.jets, "pair_offsets");
  all.bias_half = bias->element_size() == sizeof(bf16);
  if (bias->size(0) != all.heads) throw std::runtime_error("bias must have a row for each head");
  all.bias = all.bias_half ? static_cast<void*>(data<bf16>(*bias, "bias"))
                           : static_cast<void*>(data<float>(*bias, "bias"));
  all.pairs = bias->size(1);
  if (!all.pairs) all.bias = nullptr;
  return all;
}

}  // namespace

// -> out like q, softmax (Tq, H, 2) float32
std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& query_offsets, const Tensor& key_offsets,
                                     std::optional<Tensor> bias,
                                     std::optional<Tensor> particle_offsets,
                                     std::optional<Tensor> pair_offsets, double scale,
                                     int64_t precision) {
  OnDevice device(q);
  const Rows q_rows(q, q, "q"), k_rows(k, q, "k"), v_rows(v, q, "v");
  const AttentionJets all = batch(q_rows, k_rows, v_rows, query_offsets, key_offsets, bias,
                                  particle_offsets, pair_offsets, scale, precision);
  Tensor out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)});
  Tensor softmax = torch::stable::new_empty(q, {q.size(0), q.size(1), 2},
                                            torch::headeronly::ScalarType::Float);
  const AttentionOutput to = {out.data_ptr(), data<float>(softmax, "softmax")};
  if (all.jets && all.queries && all.heads) {
    auto run = all.width == 8    ? queue_attention_forward<1>
               : all.width == 16 ? queue_attention_forward<2>
                                 : queue_attention_forward<4>;
    run(all, to, device.stream());
  }
  return {out, softmax};
}

// -> dq, dk, dv as q, k, v but contiguous; dbias as bias, or empty if not wanted
std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& dout, const Tensor& q, const Tensor& k, const Tensor& v,
    const Tensor& query_offsets, const Tensor& key_offsets, std::optional<Tensor> bias,
    std::optional<Tensor> particle_offsets, std::optional<Tensor> pair_offsets, double scale,
    int64_t precision, const Tensor& out, const Tensor& softmax, bool want_bias) {
  OnDevice device(q);
  const Rows q_rows(q, q, "q"), k_rows(k, q, "k"), v_rows(v, q, "v");
  const AttentionJets all = batch(q_rows, k_rows, v_rows, query_offsets, key_offsets, bias,
                                  particle_offsets, pair_offsets, scale, precision);
  auto like = [&](const Tensor& t) {
    return torch::stable::new_empty(q, {t.size(0), q.size(1), q.size(2)});
  };
  Tensor dq = like(q), dk = like(k), dv = like(v);
  want_bias = want_bias && bias;
  Tensor dbias = want_bias
                     ? torch::stable::new_empty(*bias, {bias->size(0), bias->size(1)})
                     : torch::stable::new_empty(q, {0});
  Tensor delta = torch::stable::new_empty(softmax, {q.size(0), q.size(1)});
  const Rows dout_rows(dout, q, "dout"), out_rows(out, q, "out");
  AttentionGradients to = {};
  to.dout = dout_rows.data();
  to.out = out_rows.data();
  to.dout_row = dout_rows.row();
  to.out_row = out_rows.row();
  to.softmax = data<float>(softmax, "softmax");
  to.delta = data<float>(delta, "delta");
  to.dq = dq.data_ptr();
  to.dk = dk.data_ptr();
  to.dv = dv.data_ptr();
  to.dbias = want_bias && all.pairs ? dbias.data_ptr() : nullptr;
  if (all.jets && (all.queries || k.size(0)) && all.heads) {
    auto run = all.width == 8    ? queue_attention_backward<1>
               : all.width == 16 ? queue_attention_backward<2>
                                 : queue_attention_backward<4>;
    run(all, to, device.stream());
  }
  return {dq, dk, dv, dbias};
}

}  // namespace jetkern

STABLE_TORCH_LIBRARY_IMPL(jetkern_cuda, JETKERN_KEY, m) {
  m.impl("attention", TORCH_BOX(&jetkern::attention));
  m.impl("attention_backward", TORCH_BOX(&jetkern::attention_backward));
}
