// Attention of bf16 on tensor cores (mma.sync, compute capability 8.0 and higher), for any head
// dimensions up to 256: rows are filled up with zeros to the next size there is a kernel for.
#pragma once

#include <type_traits>

#include "kernels/attention.h"

namespace longhaul::kernels::cuda {

// f(std::integral_constant<int, n>) with the least n >= dim that there are kernels for.
template <class F>
void with_mma_dim(int64_t dim, F f) {
  if (dim <= 32) return f(std::integral_constant<int, 32>());
  if (dim <= 64) return f(std::integral_constant<int, 64>());
  if (dim <= 96) return f(std::integral_constant<int, 96>());
  if (dim <= 128) return f(std::integral_constant<int, 128>());
  if (dim <= 192) return f(std::integral_constant<int, 192>());
  f(std::integral_constant<int, 256>());
}

// The kernels of one padded head dimension; each is compiled in a file of its own.
template <int kDim>
void forward_mma(const Context&, const AttentionForward&);
template <int kDim>
void backward_mma(const Context&, const AttentionBackward&);

}  // namespace longhaul::kernels::cuda
