#include "kernels/decay_gate.h"

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

namespace {

void check(ConstTensorView x, ConstTensorView a_log, ConstTensorView bias) {
  expect_float(x, "decay_gate: x", 2);
  expect_dense(a_log, "decay_gate: a_log", x.dtype(), {x.dim(1)});
  expect_dense(bias, "decay_gate: bias", x.dtype(), {x.dim(1)});
}

}  // namespace

void decay_gate_forward(const Context& ctx, const DecayGateForward& args) {
  check(args.x, args.a_log, args.bias);
  expect_rows(args.y, "decay_gate: y", accumulator(args.x.dtype()), args.x.shape());
  select(backend(ctx.device()).decay_gate, "decay_gate", ctx.device(), args.x.dtype())
      .forward(ctx, args);
}

void decay_gate_backward(const Context& ctx, const DecayGateBackward& args) {
  check(args.x, args.a_log, args.bias);
  const DType acc = accumulator(args.x.dtype());
  expect_rows(args.dy, "decay_gate: dy", acc, args.x.shape());
  expect_rows(args.dx, "decay_gate: dx", args.x.dtype(), args.x.shape());
  expect_dense(args.da_log, "decay_gate: da_log", acc, {args.x.dim(1)});
  expect_dense(args.dbias, "decay_gate: dbias", acc, {args.x.dim(1)});
  select(backend(ctx.device()).decay_gate, "decay_gate", ctx.device(), args.x.dtype())
      .backward(ctx, args);
}

}  // namespace longhaul::kernels
