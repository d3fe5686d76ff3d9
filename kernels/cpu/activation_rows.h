// What kernels/cpu/activation.cc compiles once per instruction set.
#pragma once

#include <cstdint>
#include <tuple>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

// Functions on n elements, for one activation. Y is T or its accumulator type.
template <class T, class Y>
struct ActivationRows {
  // y = scale * act(x)
  void (*forward)(const T* x, Accumulator<T> scale, int64_t n, Y* y);
  // dx = dy * scale * act'(x)
  void (*backward)(const Y* dy, const T* x, Accumulator<T> scale, int64_t n, T* dx);
};
using ActivationRowsOfAll =
    std::tuple<ActivationRows<bf16, bf16>, ActivationRows<bf16, float>,
               ActivationRows<float, float>, ActivationRows<double, double>>;

}  // namespace longhaul::kernels::cpu
