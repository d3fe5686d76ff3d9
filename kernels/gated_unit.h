// Gated units: y = act(gate) * up. With SiLU, the MLP of the Llama models (SwiGLU, Shazeer 2020);
// with the identity, that of TransNormerLLM (SGLU, Qin et al. 2024); with SiLU or the sigmoid, the
// output gate of linear attention.
#pragma once

#include <string_view>

#include "kernels/activation.h"
#include "kernels/core/context.h"

namespace longhaul::kernels {

// Identity, SiLU or sigmoid.
struct GatedUnitForward {
  Activation activation = Activation::kSilu;
  ConstTensorView gate, up;  // [T, F]
  TensorView y;              // [T, F]
};
struct GatedUnitBackward {
  Activation activation = Activation::kSilu;
  ConstTensorView dy, gate, up;  // [T, F]
  TensorView dgate, dup;         // [T, F], overwritten
};

void gated_unit_forward(const Context&, const GatedUnitForward&);
void gated_unit_backward(const Context&, const GatedUnitBackward&);

struct GatedUnitKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();
  void (*forward)(const Context&, const GatedUnitForward&);
  void (*backward)(const Context&, const GatedUnitBackward&);
};

}  // namespace longhaul::kernels
