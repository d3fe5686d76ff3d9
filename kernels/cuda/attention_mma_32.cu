// Attention on tensor cores for head dimensions of 32 and what is filled up to it.
#include "kernels/cuda/attention_mma_backward.h"
#include "kernels/cuda/attention_mma_forward.h"

namespace longhaul::kernels::cuda {

template void forward_mma<32>(const Context&, const AttentionForward&);
template void backward_mma<32>(const Context&, const AttentionBackward&);

}  // namespace longhaul::kernels::cuda
