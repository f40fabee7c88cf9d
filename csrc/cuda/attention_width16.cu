#include "attention.cuh"

namespace jetkern {

template void queue_attention_forward<2>(const AttentionJets&, const AttentionOutput&, void*);
template void queue_attention_backward<2>(const AttentionJets&, const AttentionGradients&, void*);

}  // namespace jetkern
