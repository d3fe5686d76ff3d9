// Token embedding.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

struct EmbeddingForward {
  ConstTensorView tokens;  // [T] i32, each in [0, V)
  ConstTensorView table;   // [V, C]
  TensorView out;          // [T, C]
};
struct EmbeddingBackward {
  ConstTensorView tokens;  // [T] i32
  ConstTensorView dout;    // [T, C]
  TensorView dtable;       // [V, C] accumulator type; +=, in token order whatever the threads
};

// Throws Error(kData) for a token outside the vocabulary, naming it.
void check_tokens(std::span<const int32_t> tokens, int64_t vocabulary);

// A token outside the vocabulary: on CPUs the error of check_tokens(). On GPUs, where an error
// would have to be waited for, a row of NaN forward and nothing backward; who uploads tokens checks
// them.
void embedding_forward(const Context&, const EmbeddingForward&);
void embedding_backward(const Context&, const EmbeddingBackward&);

struct EmbeddingKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();
  void (*forward)(const Context&, const EmbeddingForward&);
  void (*backward)(const Context&, const EmbeddingBackward&);
};

}  // namespace longhaul::kernels
