// What one call of the vector code of kernels/cpu/rope.cc is given.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

// The heads of one token, `stride` apart, of 2 * half elements each.
template <class T>
struct RopeToken {
  const Accumulator<T>*cos, *sin;  // [half]
  Accumulator<T> sign;             // of sin
  int64_t half, heads, stride;
  T* x;
};

template <class T>
using RotateToken = void (*)(const RopeToken<T>&);

}  // namespace longhaul::kernels::cpu
