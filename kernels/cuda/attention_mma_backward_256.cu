#include "kernels/cuda/attention_mma_backward.h"

namespace longhaul::kernels::cuda {

template void backward_mma<256>(const Context&, const AttentionBackward&);

}  // namespace longhaul::kernels::cuda
