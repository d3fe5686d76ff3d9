// Root-mean-square normalisation (Zhang & Sennrich 2019): y = scale * x * rstd * weight, one rstd a
// row. Without weight and with a scale of 1 it is the SRMSNorm of TransNormerLLM (Qin et al. 2024);
// with 1 / sqrt(C) rows get length 1. Heads are normalised one by one under the shape [T * H, D].
#pragma once

#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

struct RmsNormForward {
  ConstTensorView x;       // [T, C]
  ConstTensorView weight;  // [C], or absent (rank 0): ones
  double eps = 1e-5;
  double scale = 1;
  TensorView y;     // [T, C]
  TensorView rstd;  // [T] accumulator type: 1 / sqrt(mean(x^2) + eps), kept for backward
};
struct RmsNormBackward {
  ConstTensorView dy, x;   // [T, C]
  ConstTensorView weight;  // [C], or absent
  ConstTensorView rstd;    // [T] accumulator type
  double scale = 1;
  TensorView dx;       // [T, C]; +=, since x also feeds the residual connection
  TensorView dweight;  // [C] accumulator type; +=; absent if weight is
};

void rms_norm_forward(const Context&, const RmsNormForward&);
void rms_norm_backward(const Context&, const RmsNormBackward&);

struct RmsNormKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();
  void (*forward)(const Context&, const RmsNormForward&);
  void (*backward)(const Context&, const RmsNormBackward&);
};

}  // namespace longhaul::kernels
