// Functions of single elements: y = scale * act(x). What a layer applies to projections that
// nothing else is multiplied with: SiLU of queries and keys, log gates (in gated linear attention,
// log_sigmoid(x) / 16, Yang et al. 2024). What multiplies is kernels/gated_unit.h.
#pragma once

#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

enum class Activation {
  kIdentity,
  kSilu,        // x / (1 + e^-x)
  kSigmoid,     // 1 / (1 + e^-x)
  kLogSigmoid,  // -log(1 + e^-x), never positive
};

// y may be wider than x: x's dtype or its accumulator type, for gates that are summed up later.
struct ActivationForward {
  Activation activation = Activation::kSilu;
  double scale = 1;
  ConstTensorView x;  // [T, F]
  TensorView y;       // [T, F] x's dtype, or its accumulator type
};
struct ActivationBackward {
  Activation activation = Activation::kSilu;
  double scale = 1;
  ConstTensorView dy;  // [T, F] x's dtype, or its accumulator type
  ConstTensorView x;   // [T, F]
  TensorView dx;       // [T, F], overwritten
};

void activation_forward(const Context&, const ActivationForward&);
void activation_backward(const Context&, const ActivationBackward&);

struct ActivationKernel {
  std::string_view name;
  DType dtype;  // of x
  bool (*available)();
  void (*forward)(const Context&, const ActivationForward&);
  void (*backward)(const Context&, const ActivationBackward&);
};

}  // namespace longhaul::kernels
