// Matrix products.
#pragma once

#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

enum class Transpose { kNo, kYes };

struct Gemm {
  Transpose transpose_a = Transpose::kNo;
  Transpose transpose_b = Transpose::kNo;
  ConstTensorView a;  // op(a) is [M, K]
  ConstTensorView b;  // op(b) is [K, N], the dtype of a
  TensorView c;       // [M, N]: the dtype of a, or its accumulator type
  double beta = 0.0;  // 0: c is overwritten (and may hold NaN), 1: c is added to
};

// c = op(a) op(b) + beta c, accumulated in the accumulator type. Rows may have any stride >= their
// length; the last dimension is dense. Empty M or N is legal; K = 0 gives beta c.
void gemm(const Context&, const Gemm&);

struct GemmKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();
  void (*run)(const Context&, const Gemm&);
};

}  // namespace longhaul::kernels
