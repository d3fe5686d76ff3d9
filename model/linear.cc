#include "model/linear.h"

#include "kernels/activation.h"
#include "kernels/gemm.h"
#include "kernels/pointwise.h"

namespace longhaul::model {

using kernels::Transpose;

void linear_forward(const Context& ctx, ConstTensorView x, const parallel::Parameter& weight,
                    TensorView y) {
  kernels::gemm(ctx, {.transpose_b = Transpose::kYes, .a = x, .b = weight.use(), .c = y});
}

void linear_backward(const Context& ctx, ConstTensorView dy, ConstTensorView x,
                     const parallel::Parameter& weight, TensorView dx, Write write) {
  kernels::gemm(ctx,
                {.a = dy, .b = weight.use(), .c = dx, .beta = write == Write::kAdd ? 1.0 : 0.0});
  kernels::gemm(ctx,
                {.transpose_a = Transpose::kYes, .a = dy, .b = x, .c = weight.grad(), .beta = 1.0});
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
  Arena::Scope scope(*ctx.scratch);
  kernels::gemm(ctx, {.transpose_a = Transpose::kYes,
                      .a = column_of_ones(ctx, dy.dtype(), dy.dim(0)),
                      .b = dy,
                      .c = bias.grad().reshape({1, dy.dim(1)}),
                      .beta = 1.0});
}

}  // namespace longhaul::model
