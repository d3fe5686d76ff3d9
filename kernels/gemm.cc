#include "kernels/gemm.h"

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

void gemm(const Context& ctx, const Gemm& args) {
  expect_float(args.a, "gemm: a", 2);
  expect_float(args.b, "gemm: b", 2);
  expect_float(args.c, "gemm: c", 2);
  const DType dtype = args.a.dtype();
  const bool ta = args.transpose_a == Transpose::kYes, tb = args.transpose_b == Transpose::kYes;
  const int64_t m = args.a.dim(ta ? 1 : 0), k = args.a.dim(ta ? 0 : 1);
  const int64_t n = args.b.dim(tb ? 0 : 1);
  expect(args.b, "gemm: b", dtype, tb ? Shape{n, k} : Shape{k, n});
  expect(args.c, "gemm: c", args.c.dtype() == dtype ? dtype : accumulator(dtype), {m, n});
  LONGHAUL_CHECK(args.beta == 0.0 || args.beta == 1.0, "gemm: beta is 0 or 1");
  for (const ConstTensorView& matrix : {args.a, args.b, ConstTensorView(args.c)}) {
    LONGHAUL_CHECK(matrix.dim(0) <= 1 || matrix.stride(0) >= matrix.dim(1), "gemm: rows overlap");
  }
  select(backend(ctx.device()).gemm, "gemm", ctx.device(), dtype).run(ctx, args);
}

}  // namespace longhaul::kernels
