#include "kernels/linear_attention_diagonal.h"

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

void linear_attention_subtract_diagonal(const Context& ctx, const LinearAttentionDiagonal& args) {
  expect_float(args.a, "linear attention diagonal: a", 3);
  expect_float(args.b, "linear attention diagonal: b", 3);
  expect_float(args.c, "linear attention diagonal: c", 3);
  const DType dtype = args.a.dtype();
  expect(args.b, "linear attention diagonal: b", dtype, args.a.shape());
  expect(args.c, "linear attention diagonal: c", dtype,
         {args.a.dim(0), args.a.dim(1), args.c.dim(2)});
  expect_dense(args.y, "linear attention diagonal: y", accumulator(dtype), args.c.shape());
  select(backend(ctx.device()).linear_attention_diagonal, "bidirectional linear attention",
         ctx.device(), dtype)
      .subtract(ctx, args);
}

}  // namespace longhaul::kernels
