#include "kernels/lrpe.h"

#include <cmath>

#include "kernels/angle_table.h"
#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

namespace {

constexpr double kTheta = 10000.0;

void check(ConstTensorView cos, ConstTensorView sin, ConstTensorView narrow,
           std::string_view narrow_name, ConstTensorView wide, std::string_view wide_name) {
  expect_float(narrow, narrow_name, 3);
  const DType acc = accumulator(narrow.dtype());
  expect_rows(narrow, narrow_name, narrow.dtype(), narrow.shape());
  expect_rows(wide, wide_name, narrow.dtype(), {narrow.dim(0), narrow.dim(1), 2 * narrow.dim(2)});
  expect_dense(cos, "lrpe: cos", acc, narrow.shape());
  expect_dense(sin, "lrpe: sin", acc, narrow.shape());
}

}  // namespace

std::vector<double> lrpe_frequencies(int64_t heads, int64_t head_dim) {
  const int64_t count = heads * head_dim;
  std::vector<double> frequencies;
  for (int64_t i = 0; i < count; ++i) {
    frequencies.push_back(
        std::pow(kTheta, -2.0 * static_cast<double>(i) / static_cast<double>(count)));
  }
  return frequencies;
}

void lrpe_table(const Stream& stream, std::span<const double> frequencies,
                std::span<const int64_t> positions, TensorView cos, TensorView sin) {
  const auto tokens = static_cast<int64_t>(positions.size());
  const auto count = static_cast<int64_t>(frequencies.size());
  for (const TensorView* table : {&cos, &sin}) {
    LONGHAUL_CHECK(table->rank() == 3 && table->dim(0) == tokens &&
                       table->dim(1) * table->dim(2) == count && table->contiguous(),
                   "lrpe: a table is dense, [positions, heads, head_dim]");
  }
  angle_table(stream, frequencies, positions, cos.reshape({tokens, count}),
              sin.reshape({tokens, count}));
}

void lrpe_forward(const Context& ctx, const LrpeForward& args) {
  check(args.cos, args.sin, args.x, "lrpe: x", args.y, "lrpe: y");
  select(backend(ctx.device()).lrpe, "lrpe", ctx.device(), args.x.dtype()).forward(ctx, args);
}

void lrpe_backward(const Context& ctx, const LrpeBackward& args) {
  check(args.cos, args.sin, args.dx, "lrpe: dx", args.dy, "lrpe: dy");
  select(backend(ctx.device()).lrpe, "lrpe", ctx.device(), args.dx.dtype()).backward(ctx, args);
}

}  // namespace longhaul::kernels
