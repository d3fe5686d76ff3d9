// The log decay of gated delta networks (Yang et al. 2025, after Mamba-2, Dao & Gu 2024):
//
//   y[t, h] = -e^a_log[h] softplus(x[t, h] + bias[h])        softplus(z) = log(1 + e^z)
//
// so that e^y, what a state keeps of itself, lies in (0, 1] whatever the parameters are.
#pragma once

#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

struct DecayGateForward {
  ConstTensorView x;            // [T, H]
  ConstTensorView a_log, bias;  // [H] of x's dtype
  TensorView y;                 // [T, H] accumulator type
};
struct DecayGateBackward {
  ConstTensorView dy;           // [T, H] accumulator type
  ConstTensorView x;            // [T, H]
  ConstTensorView a_log, bias;  // [H]
  TensorView dx;                // [T, H], overwritten
  TensorView da_log, dbias;     // [H] accumulator type; +=, in an order that threads do not change
};

void decay_gate_forward(const Context&, const DecayGateForward&);
void decay_gate_backward(const Context&, const DecayGateBackward&);

struct DecayGateKernel {
  std::string_view name;
  DType dtype;  // of x
  bool (*available)();
  void (*forward)(const Context&, const DecayGateForward&);
  void (*backward)(const Context&, const DecayGateBackward&);
};

}  // namespace longhaul::kernels
