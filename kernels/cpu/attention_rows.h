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

// to[j] = sum of rows[j * stride + i] * x[i] over i < n, for j < count.
template <class T>
using DotRows = void (*)(const T* rows, int64_t stride, int64_t count, const T* x, int64_t n,
                         Accumulator<T>* to);
template <class T>
DotRows<T> dot_rows();

// to[i] = to[i] * keep + sum of weights[j] * rows[j * stride + i] over j < count, for i < n. Where
// keep is 0, what was in `to` does not matter.
template <class T>
using AddRows = void (*)(const T* rows, int64_t stride, int64_t count,
                         const Accumulator<T>* weights, Accumulator<T> keep, Accumulator<T>* to,
                         int64_t n);
template <class T>
AddRows<T> add_rows();

// to = to * keep + from * take
template <class A>
using MixRow = void (*)(const A* from, A take, A keep, A* to, int64_t n);
template <class A>
MixRow<A> mix_row();

}  // namespace longhaul::kernels::cpu
