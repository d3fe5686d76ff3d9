#include "kernels/rms_norm.h"

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

namespace {

void expect_weight(ConstTensorView weight, std::string_view what, DType dtype, int64_t channels) {
  if (weight.rank() > 0) expect_dense(weight, what, dtype, {channels});
}

}  // namespace

void rms_norm_forward(const Context& ctx, const RmsNormForward& args) {
  expect_float(args.x, "rms_norm: x", 2);
  const DType dtype = args.x.dtype();
  expect_weight(args.weight, "rms_norm: weight", dtype, args.x.dim(1));
  expect_rows(args.y, "rms_norm: y", dtype, args.x.shape());
  expect_dense(args.rstd, "rms_norm: rstd", accumulator(dtype), {args.x.dim(0)});
  select(backend(ctx.device()).rms_norm, "rms_norm", ctx.device(), dtype).forward(ctx, args);
}

void rms_norm_backward(const Context& ctx, const RmsNormBackward& args) {
  expect_float(args.x, "rms_norm: x", 2);
  const DType dtype = args.x.dtype(), acc = accumulator(dtype);
  expect_rows(args.dy, "rms_norm: dy", dtype, args.x.shape());
  expect_weight(args.weight, "rms_norm: weight", dtype, args.x.dim(1));
  expect_dense(args.rstd, "rms_norm: rstd", acc, {args.x.dim(0)});
  expect_rows(args.dx, "rms_norm: dx", dtype, args.x.shape());
  LONGHAUL_CHECK((args.weight.rank() > 0) == (args.dweight.rank() > 0),
                 "rms_norm: weight and dweight are both there or both absent");
  expect_weight(args.dweight, "rms_norm: dweight", acc, args.x.dim(1));
  select(backend(ctx.device()).rms_norm, "rms_norm", ctx.device(), dtype).backward(ctx, args);
}

}  // namespace longhaul::kernels
