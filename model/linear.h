// Projections y = x W^T with W [out, in], and their gradients; with an adapter, as in LoRA (Hu et
// al. 2022), y = x W^T + scale (x A^T) B^T, where A and B are trained and W is frozen.
#pragma once

#include <optional>

#include "kernels/core/context.h"
#include "parallel/shard/parameters.h"

namespace longhaul::model {

enum class Write { kOverwrite, kAdd };

struct Adapter {
  parallel::Parameter down;  // A [rank, in]
  parallel::Parameter up;    // B [out, rank]
  double scale = 1;          // alpha / rank
};
struct Projection {
  parallel::Parameter weight;  // W [out, in]
  std::optional<Adapter> adapter = {};
};

// x [T, in], y [T, out]
void linear_forward(const Context&, ConstTensorView x, const Projection& projection, TensorView y);
// dx = gradient of y times the projection (or +=); what is trained of W, A and B gets its gradient
// added. dy [T, out], x and dx [T, in].
void linear_backward(const Context&, ConstTensorView dy, ConstTensorView x,
                     const Projection& projection, TensorView dx, Write write);

// y += bias in every row; dbias += sums of dy's columns, if it is trained. y, dy [T, out], bias
// [out].
void add_bias(const Context&, const parallel::Parameter& bias, TensorView y);
void bias_backward(const Context&, ConstTensorView dy, const parallel::Parameter& bias);

// [T, H, D] -> [T*H, D]
inline TensorView each_head(const TensorView& x) {
  return x.reshape({x.dim(0) * x.dim(1), x.dim(2)});
}
// [T, H, D] -> [T, H*D]
inline TensorView all_heads(const TensorView& x) {
  return x.reshape({x.dim(0), x.dim(1) * x.dim(2)});
}

}  // namespace longhaul::model
