#include "model/linear.h"

#include "kernels/activation.h"
#include "kernels/gemm.h"
#include "kernels/pointwise.h"

namespace longhaul::model {

using kernels::Transpose;

namespace {

// x times `scale`, in place.
void scale_by(const Context& ctx, double scale, TensorView x) {
  kernels::activation_forward(
      ctx, {.activation = kernels::Activation::kIdentity, .scale = scale, .x = x, .y = x});
}

// scale x A^T [T, rank], in workspace.
TensorView lowered(const Context& ctx, ConstTensorView x, const Adapter& adapter) {
  const TensorView low = ctx.scratch->allocate(x.dtype(), {x.dim(0), adapter.down.use().dim(0)});
  kernels::gemm(ctx, {.transpose_b = Transpose::kYes, .a = x, .b = adapter.down.use(), .c = low});
  scale_by(ctx, adapter.scale, low);
  return low;
}

}  // namespace

void linear_forward(const Context& ctx, ConstTensorView x, const Projection& projection,
                    TensorView y) {
  kernels::gemm(ctx,
                {.transpose_b = Transpose::kYes, .a = x, .b = projection.weight.use(), .c = y});
  if (!projection.adapter) return;
  Arena::Scope scope(*ctx.scratch);
  kernels::gemm(ctx, {.transpose_b = Transpose::kYes,
                      .a = lowered(ctx, x, *projection.adapter),
                      .b = projection.adapter->up.use(),
                      .c = y,
                      .beta = 1.0});
}

void linear_backward(const Context& ctx, ConstTensorView dy, ConstTensorView x,
                     const Projection& projection, TensorView dx, Write write) {
  const auto add_gradient = [&](ConstTensorView of_output, ConstTensorView of_input,
                                const parallel::Parameter& weight) {
    kernels::gemm(ctx, {.transpose_a = Transpose::kYes,
                        .a = of_output,
                        .b = of_input,
                        .c = weight.grad(),
                        .beta = 1.0});
  };
  kernels::gemm(
      ctx,
      {.a = dy, .b = projection.weight.use(), .c = dx, .beta = write == Write::kAdd ? 1.0 : 0.0});
  if (projection.weight.trained()) add_gradient(dy, x, projection.weight);
  if (!projection.adapter) return;
  const Adapter& adapter = *projection.adapter;
  Arena::Scope scope(*ctx.scratch);
  // Made again, as it costs rank / out of the forward product.
  add_gradient(dy, lowered(ctx, x, adapter), adapter.up);
  const TensorView dlow = ctx.scratch->allocate(dy.dtype(), {dy.dim(0), adapter.down.use().dim(0)});
  kernels::gemm(ctx, {.a = dy, .b = adapter.up.use(), .c = dlow});
  scale_by(ctx, adapter.scale, dlow);
  add_gradient(dlow, x, adapter.down);
  kernels::gemm(ctx, {.a = dlow, .b = adapter.down.use(), .c = dx, .beta = 1.0});
}

namespace {

// [rows, 1]: a product with it adds to every row, or sums columns.
TensorView column_of_ones(const Context& ctx, DType dtype, int64_t rows) {
  const TensorView ones = ctx.scratch->allocate(dtype, {rows, 1});
  kernels::fill_zero(ctx, ones);
  kernels::activation_forward(
      ctx, {.activation = kernels::Activation::kSigmoid, .scale = 2, .x = ones, .y = ones});
  return ones;
}

}  // namespace

void add_bias(const Context& ctx, const parallel::Parameter& bias, TensorView y) {
  Arena::Scope scope(*ctx.scratch);
  kernels::gemm(ctx, {.a = column_of_ones(ctx, y.dtype(), y.dim(0)),
                      .b = bias.use().reshape({1, y.dim(1)}),
                      .c = y,
                      .beta = 1.0});
}

void bias_backward(const Context& ctx, ConstTensorView dy, const parallel::Parameter& bias) {
  if (!bias.trained()) return;
  Arena::Scope scope(*ctx.scratch);
  kernels::gemm(ctx, {.transpose_a = Transpose::kYes,
                      .a = column_of_ones(ctx, dy.dtype(), dy.dim(0)),
                      .b = dy,
                      .c = bias.grad().reshape({1, dy.dim(1)}),
                      .beta = 1.0});
}

}  // namespace longhaul::model
