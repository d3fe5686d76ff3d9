#include "model/linear.h"

#include "kernels/gemm.h"

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

}  // namespace longhaul::model
