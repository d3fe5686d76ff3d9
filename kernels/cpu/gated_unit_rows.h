// What kernels/cpu/gated_unit.cc compiles once per instruction set.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

// Functions on n elements, for one activation.
template <class T>
struct GatedUnitRows {
  // y = act(gate) * up
  void (*forward)(const T* gate, const T* up, int64_t n, T* y);
  // dup = dy * act(gate);  dgate = dy * up * act'(gate).
  void (*backward)(const T* dy, const T* gate, const T* up, int64_t n, T* dgate, T* dup);
};

}  // namespace longhaul::kernels::cpu
