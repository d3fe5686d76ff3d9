// The parts of attention that are one pass over memory, on one row of n elements.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

// sum of out[i] * dout[i]; O is T or its accumulator type.
template <class O, class T>
using DotRow = Accumulator<T> (*)(const O* out, const T* dout, int64_t n);
template <class O, class T>
DotRow<O, T> dot_row();

// to = to * keep + from * take
template <class A>
using MixRow = void (*)(const A* from, A take, A keep, A* to, int64_t n);
template <class A>
MixRow<A> mix_row();

}  // namespace longhaul::kernels::cpu
