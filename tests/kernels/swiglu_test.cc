#include "kernels/swiglu.h"

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

double silu(double x) { return x / (1 + std::exp(-x)); }

void expect_row(const SwigluKernel& row, const Shape& shape, double scale, int threads,
                int64_t gap = Gapped::kGap) {
  SCOPED_TRACE(shape.to_string());
  Rig rig(threads);
  Gapped gate(row.dtype, shape, gap), up(row.dtype, shape, gap), dy(row.dtype, shape, gap);
  Gapped y(row.dtype, shape, gap), dgate(row.dtype, shape, gap), dup(row.dtype, shape, gap);
  fill_random(gate, 1, scale);
  fill_random(up, 2);
  fill_random(dy, 3);
  const std::vector<double> g = values(gate), u = values(up), d = values(dy);
  std::vector<double> expected_y, expected_dgate, expected_dup;
  for (size_t i = 0; i < g.size(); ++i) {
    // The quotient rule on x / (1 + e^-x), with the range of extended precision.
    const long double x = g[i], e = std::exp(-x);
    const auto slope = static_cast<double>((1 + e + x * e) / (1 + e) / (1 + e));
    expected_y.push_back(silu(g[i]) * u[i]);
    expected_dup.push_back(d[i] * silu(g[i]));
    expected_dgate.push_back(d[i] * u[i] * slope);
  }
  rig.run([&](const Context& ctx) {
    row.forward(ctx, {.gate = gate, .up = up, .y = y});
    row.backward(ctx, {.dy = dy, .gate = gate, .up = up, .dgate = dgate, .dup = dup});
  });
  // A handful of operations per element and an exponential to 1 ulp, then one rounding.
  const double tolerance = 8 * epsilon(accumulator(row.dtype)) + epsilon(row.dtype);
  expect_near(y, expected_y, tolerance, "y");
  expect_near(dgate, expected_dgate, tolerance, "dgate");
  expect_near(dup, expected_dup, tolerance, "dup");
  EXPECT_TRUE(y.gaps_intact() && dgate.gaps_intact() && dup.gaps_intact());
}

TEST(Swiglu, ForwardAndBackward) {
  for_each_row_and_instruction_set(&Backend::swiglu, [](const SwigluKernel& row) {
    for (int threads : numbers_of_threads({1, 3})) {
      for (const Shape& shape : {Shape{0, 5}, Shape{1, 1}, Shape{3, 31}, Shape{40, 129}}) {
        expect_row(row, shape, 2.0, threads);
      }
    }
    for (int64_t columns : short_lengths()) {
      for (int64_t gap : {Gapped::kGap, Gapped::kAlignedGap}) {
        expect_row(row, {2, columns}, 2.0, 1, gap);
      }
    }
    // Gates so large that e^-x overflows or vanishes.
    expect_row(row, {4, 50}, 400.0, 1);
  });
}

// Each value alone: a norm would not see the digits of small ones.
TEST(Swiglu, SmallValuesKeepTheirDigits) {
  for_each_row_and_instruction_set(&Backend::swiglu, [](const SwigluKernel& row) {
    constexpr int64_t kCount = 4001;
    const DeviceTensor gate(row.dtype, {1, kCount}), up = filled(row.dtype, {1, kCount}, 1);
    const DeviceTensor y(row.dtype, {1, kCount});
    set(gate, [](int64_t i) { return (static_cast<double>(i) - 2000) / 2000 * 80; });
    Rig(1).run([&](const Context& ctx) { row.forward(ctx, {.gate = gate, .up = up, .y = y}); });
    const std::vector<double> x = values(gate), got = values(y);
    const double tolerance = 4 * epsilon(accumulator(row.dtype)) + epsilon(row.dtype);
    for (size_t i = 0; i < x.size(); ++i) {
      EXPECT_NEAR(got[i], silu(x[i]), tolerance * std::abs(silu(x[i]))) << x[i];
    }
  });
}

TEST(Swiglu, NanIsNotHidden) {
  for_each_row_and_instruction_set(&Backend::swiglu, [](const SwigluKernel& row) {
    Rig rig(1);
    const DeviceTensor gate = filled(row.dtype, {1, 40}, std::nan("")),
                       up = filled(row.dtype, {1, 40}, 1);
    const DeviceTensor y(row.dtype, {1, 40});
    rig.run([&](const Context& ctx) { row.forward(ctx, {.gate = gate, .up = up, .y = y}); });
    for (double v : values(y)) EXPECT_TRUE(std::isnan(v));
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
