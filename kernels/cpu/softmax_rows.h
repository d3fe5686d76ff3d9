// What kernels/cpu/linear_cross_entropy.cc compiles once per instruction set: functions on a row of
// n logits.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

template <class T>
struct SoftmaxRows {
  Accumulator<T> (*log_sum_exp)(const Accumulator<T>* logits, int64_t n);
  void (*softmax)(const Accumulator<T>* logits, int64_t n, Accumulator<T> lse,
                  Accumulator<T> factor, T* gradient);
};

}  // namespace longhaul::kernels::cpu
