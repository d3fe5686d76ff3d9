#include "kernels/cuda/attention_mma_forward.h"

namespace longhaul::kernels::cuda {

template void forward_mma<256>(const Context&, const AttentionForward&);

}  // namespace longhaul::kernels::cuda
