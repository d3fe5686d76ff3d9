// What one call of the vector code of kernels/cpu/adamw.cc is given.
#pragma once

#include <cstdint>

#include "kernels/adamw_factors.h"

namespace longhaul::kernels::cpu {

template <class T>
struct AdamWRange {  // of n parameters
  const Accumulator<T>* grad;
  Accumulator<T>*master, *m, *v;
  T* param;
  int64_t n;
};

template <class T>
using UpdateRange = void (*)(const AdamWFactors<Accumulator<T>>&, const AdamWRange<T>&);

}  // namespace longhaul::kernels::cpu
