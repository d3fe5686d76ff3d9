#include "kernels/activation.h"

#include <cmath>

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

namespace {

// `wide` is of x's dtype or its accumulator type.
void check(ConstTensorView x, ConstTensorView wide, std::string_view what, double scale) {
  expect_float(x, "activation: x", 2);
  const bool widened = wide.dtype() == accumulator(x.dtype());
  expect_rows(wide, what, widened ? wide.dtype() : x.dtype(), x.shape());
  LONGHAUL_CHECK(std::isfinite(scale), "activation: scale");
}

}  // namespace

void activation_forward(const Context& ctx, const ActivationForward& args) {
  check(args.x, args.y, "activation: y", args.scale);
  select(backend(ctx.device()).activation, "activation", ctx.device(), args.x.dtype())
      .forward(ctx, args);
}

void activation_backward(const Context& ctx, const ActivationBackward& args) {
  check(args.x, args.dy, "activation: dy", args.scale);
  expect_rows(args.dx, "activation: dx", args.x.dtype(), args.x.shape());
  select(backend(ctx.device()).activation, "activation", ctx.device(), args.x.dtype())
      .backward(ctx, args);
}

}  // namespace longhaul::kernels
