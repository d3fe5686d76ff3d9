#include "kernels/cuda/attention_mma_backward.h"

namespace longhaul::kernels::cuda {

template void backward_mma<64>(const Context&, const AttentionBackward&);

}  // namespace longhaul::kernels::cuda
