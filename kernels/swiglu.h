// The gated unit of the Llama MLP (Shazeer 2020): y = silu(gate) * up.
#pragma once

#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

struct SwigluForward {
  ConstTensorView gate, up;  // [T, F]
  TensorView y;              // [T, F]
};
struct SwigluBackward {
  ConstTensorView dy, gate, up;  // [T, F]
  TensorView dgate, dup;         // [T, F], overwritten
};

void swiglu_forward(const Context&, const SwigluForward&);
void swiglu_backward(const Context&, const SwigluBackward&);

struct SwigluKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();
  void (*forward)(const Context&, const SwigluForward&);
  void (*backward)(const Context&, const SwigluBackward&);
};

}  // namespace longhaul::kernels
