// Attention without tensor cores: any head dimensions up to 256, products in the accumulator type.
#pragma once

#include "kernels/attention.h"

namespace longhaul::kernels::cuda {

inline constexpr int64_t kMostHeadDim = 256;

template <class T>
void attention_forward_simt(const Context&, const AttentionForward&);
template <class T>
void attention_backward_simt(const Context&, const AttentionBackward&);

}  // namespace longhaul::kernels::cuda
