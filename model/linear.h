// y = x W^T with W [out, in], and its gradients.
#pragma once

#include "kernels/core/context.h"
#include "parallel/shard/parameters.h"

namespace longhaul::model {

enum class Write { kOverwrite, kAdd };

// x [T, in], weight [out, in], y [T, out]
void linear_forward(const Context&, ConstTensorView x, const parallel::Parameter& weight,
                    TensorView y);
// dx = dy W (or +=), dW += dy^T x. dy [T, out], x and dx [T, in].
void linear_backward(const Context&, ConstTensorView dy, ConstTensorView x,
                     const parallel::Parameter& weight, TensorView dx, Write write);

// y += bias in every row; dbias += sums of dy's columns. y, dy [T, out], bias [out].
void add_bias(const Context&, const parallel::Parameter& bias, TensorView y);
void bias_backward(const Context&, ConstTensorView dy, const parallel::Parameter& bias);

// [T, H, D] -> [T, H*D]
inline TensorView all_heads(const TensorView& x) {
  return x.reshape({x.dim(0), x.dim(1) * x.dim(2)});
}

}  // namespace longhaul::model
