// Root-mean-square normalisation (Zhang & Sennrich 2019): y = x * rstd * weight, one rstd a row.
#pragma once

#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

struct RmsNormForward {
  ConstTensorView x;       // [T, C]
  ConstTensorView weight;  // [C]
  double eps = 1e-5;
  TensorView y;     // [T, C]
  TensorView rstd;  // [T] accumulator type: 1 / sqrt(mean(x^2) + eps), kept for backward
};
struct RmsNormBackward {
  ConstTensorView dy, x;   // [T, C]
  ConstTensorView weight;  // [C]
  ConstTensorView rstd;    // [T] accumulator type
  TensorView dx;           // [T, C]; +=, since x also feeds the residual connection
  TensorView dweight;      // [C] accumulator type; +=
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
