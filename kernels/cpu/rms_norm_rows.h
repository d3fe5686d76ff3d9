// What kernels/cpu/rms_norm.cc compiles once per instruction set.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

// Functions on one row of n channels; without a weight, `weight` and `dweight` are not looked at.
template <class T>
struct RmsNormRows {
  // y = scale * x * r * weight; returns r = 1 / sqrt(mean(x^2) + eps).
  Accumulator<T> (*forward)(const T* x, const T* weight, double eps, Accumulator<T> scale,
                            int64_t n, T* y);
  // With g = dy * weight and x^ = x * r:
  // dx += scale * r * (g - x^ * mean(g * x^)),  dweight += scale * dy * x^.
  void (*backward)(const T* dy, const T* x, const T* weight, Accumulator<T> r, Accumulator<T> scale,
                   int64_t n, T* dx, Accumulator<T>* dweight);
  // to += from
  void (*add)(const Accumulator<T>* from, int64_t n, Accumulator<T>* to);
};

}  // namespace longhaul::kernels::cpu
