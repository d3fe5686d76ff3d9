#include "kernels/adamw.h"

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

void adamw(const Context& ctx, const AdamW& args) {
  expect_float(args.param, "adamw: param", 1);
  const DType dtype = args.param.dtype(), acc = accumulator(dtype);
  expect_dense(args.grad, "adamw: grad", acc, args.param.shape());
  expect_dense(args.master, "adamw: master", acc, args.param.shape());
  expect_dense(args.m, "adamw: m", acc, args.param.shape());
  expect_dense(args.v, "adamw: v", acc, args.param.shape());
  LONGHAUL_CHECK(args.step >= 1, "steps count from 1, for the bias correction");
  select(backend(ctx.device()).adamw, "adamw", ctx.device(), dtype).run(ctx, args);
}

}  // namespace longhaul::kernels
