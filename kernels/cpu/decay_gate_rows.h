// What kernels/cpu/decay_gate.cc compiles once per instruction set.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

// Functions on one token's n heads.
template <class T>
struct DecayGateRows {
  // y = -rate * softplus(x + bias)
  void (*forward)(const T* x, const Accumulator<T>* rate, const T* bias, int64_t n,
                  Accumulator<T>* y);
  // With z = x + bias and slope = -dy rate sigmoid(z):
  // dx = slope, dbias += slope, da_log += -dy rate softplus(z).
  void (*backward)(const Accumulator<T>* dy, const T* x, const Accumulator<T>* rate, const T* bias,
                   int64_t n, T* dx, Accumulator<T>* da_log, Accumulator<T>* dbias);
};

}  // namespace longhaul::kernels::cpu
