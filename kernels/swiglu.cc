#include "kernels/swiglu.h"

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

void swiglu_forward(const Context& ctx, const SwigluForward& args) {
  expect_float(args.gate, "swiglu: gate", 2);
  const DType dtype = args.gate.dtype();
  expect_rows(args.up, "swiglu: up", dtype, args.gate.shape());
  expect_rows(args.y, "swiglu: y", dtype, args.gate.shape());
  select(backend(ctx.device()).swiglu, "swiglu", ctx.device(), dtype).forward(ctx, args);
}

void swiglu_backward(const Context& ctx, const SwigluBackward& args) {
  expect_float(args.gate, "swiglu: gate", 2);
  const DType dtype = args.gate.dtype();
  expect_rows(args.dy, "swiglu: dy", dtype, args.gate.shape());
  expect_rows(args.up, "swiglu: up", dtype, args.gate.shape());
  expect_rows(args.dgate, "swiglu: dgate", dtype, args.gate.shape());
  expect_rows(args.dup, "swiglu: dup", dtype, args.gate.shape());
  select(backend(ctx.device()).swiglu, "swiglu", ctx.device(), dtype).backward(ctx, args);
}

}  // namespace longhaul::kernels
