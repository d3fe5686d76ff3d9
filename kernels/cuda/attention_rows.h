// The parts of attention that are one pass over memory; see kernels/attention.h.
#pragma once

#include "kernels/attention.h"

namespace longhaul::kernels::cuda {

template <class A>
void attention_init(const Context&, TensorView out_acc, TensorView lse);
template <class T>
void attention_delta(const Context&, ConstTensorView out, ConstTensorView dout, TensorView delta);
template <class A>
void attention_merge(const Context&, ConstTensorView part, ConstTensorView part_lse,
                     TensorView out_acc, TensorView lse);

}  // namespace longhaul::kernels::cuda
