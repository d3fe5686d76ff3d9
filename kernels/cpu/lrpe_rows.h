// What kernels/cpu/lrpe.cc compiles once per instruction set.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

// Functions on one head of n elements.
template <class T>
struct LrpeRows {
  // y[i] = x[i] cos[i], y[n + i] = x[i] sin[i]
  void (*forward)(const T* x, const Accumulator<T>* cos, const Accumulator<T>* sin, int64_t n,
                  T* y);
  // dx[i] = dy[i] cos[i] + dy[n + i] sin[i]
  void (*backward)(const T* dy, const Accumulator<T>* cos, const Accumulator<T>* sin, int64_t n,
                   T* dx);
};

}  // namespace longhaul::kernels::cpu
