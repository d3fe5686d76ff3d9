#include "kernels/gated_unit.h"

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

namespace {

void check(Activation activation) {
  LONGHAUL_CHECK(activation == Activation::kIdentity || activation == Activation::kSilu ||
                     activation == Activation::kSigmoid,
                 "gated_unit: the activation is the identity, SiLU or the sigmoid");
}

}  // namespace

void gated_unit_forward(const Context& ctx, const GatedUnitForward& args) {
  check(args.activation);
  expect_float(args.gate, "gated_unit: gate", 2);
  const DType dtype = args.gate.dtype();
  expect_rows(args.up, "gated_unit: up", dtype, args.gate.shape());
  expect_rows(args.y, "gated_unit: y", dtype, args.gate.shape());
  select(backend(ctx.device()).gated_unit, "gated_unit", ctx.device(), dtype).forward(ctx, args);
}

void gated_unit_backward(const Context& ctx, const GatedUnitBackward& args) {
  check(args.activation);
  expect_float(args.gate, "gated_unit: gate", 2);
  const DType dtype = args.gate.dtype();
  expect_rows(args.dy, "gated_unit: dy", dtype, args.gate.shape());
  expect_rows(args.up, "gated_unit: up", dtype, args.gate.shape());
  expect_rows(args.dgate, "gated_unit: dgate", dtype, args.gate.shape());
  expect_rows(args.dup, "gated_unit: dup", dtype, args.gate.shape());
  select(backend(ctx.device()).gated_unit, "gated_unit", ctx.device(), dtype).backward(ctx, args);
}

}  // namespace longhaul::kernels
