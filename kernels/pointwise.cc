#include "kernels/pointwise.h"

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

namespace {

const PointwiseKernel& kernel(const Context& ctx, DType dtype) {
  const auto table = backend(ctx.device()).pointwise;
  if (table.empty()) no_kernel("pointwise", ctx.device(), dtype);
  return table.front();
}

}  // namespace

void fill_zero(const Context& ctx, TensorView x) {
  LONGHAUL_CHECK(x.contiguous(), "fill_zero: x has gaps");
  const PointwiseKernel& row = kernel(ctx, x.dtype());
  if (ctx.measuring() || x.empty()) return;
  row.fill_zero(ctx, x);
}

void copy(const Context& ctx, ConstTensorView x, TensorView y) {
  expect_float(x, "copy: x", x.rank());
  expect_float(y, "copy: y", x.rank());
  expect_rows(x, "copy: x", x.dtype(), x.shape());
  expect_rows(y, "copy: y", y.dtype(), x.shape());
  const PointwiseKernel& row = kernel(ctx, x.dtype());
  if (ctx.measuring() || x.empty()) return;
  row.copy(ctx, x, y);
}

void add_to(const Context& ctx, ConstTensorView x, TensorView y) {
  expect_float(x, "add_to: x", x.rank());
  expect_float(y, "add_to: y", x.rank());
  expect_dense(x, "add_to: x", x.dtype(), x.shape());
  expect_dense(y, "add_to: y", y.dtype(), x.shape());
  const PointwiseKernel& row = kernel(ctx, x.dtype());
  if (ctx.measuring() || x.empty()) return;
  row.add_to(ctx, x, y);
}

void add(const Context& ctx, ConstTensorView x, ConstTensorView y, TensorView z) {
  expect_float(x, "add: x", x.rank());
  expect_dense(x, "add: x", x.dtype(), x.shape());
  expect_dense(y, "add: y", x.dtype(), x.shape());
  expect_dense(z, "add: z", x.dtype(), x.shape());
  const PointwiseKernel& row = kernel(ctx, x.dtype());
  if (ctx.measuring() || x.empty()) return;
  row.add(ctx, x, y, z);
}

double sum_of_squares(const Context& ctx, ConstTensorView x) {
  expect_float(x, "sum_of_squares: x", x.rank());
  expect_dense(x, "sum_of_squares: x", x.dtype(), x.shape());
  const PointwiseKernel& row = kernel(ctx, x.dtype());
  return x.empty() ? 0.0 : row.sum_of_squares(ctx, x);
}

double sum(const Context& ctx, ConstTensorView x) {
  expect_float(x, "sum: x", x.rank());
  expect_dense(x, "sum: x", x.dtype(), x.shape());
  const PointwiseKernel& row = kernel(ctx, x.dtype());
  return x.empty() ? 0.0 : row.sum(ctx, x);
}

int64_t find_non_finite(const Context& ctx, ConstTensorView x) {
  expect_float(x, "find_non_finite: x", x.rank());
  expect_dense(x, "find_non_finite: x", x.dtype(), x.shape());
  const PointwiseKernel& row = kernel(ctx, x.dtype());
  return x.empty() ? -1 : row.find_non_finite(ctx, x);
}

}  // namespace longhaul::kernels
