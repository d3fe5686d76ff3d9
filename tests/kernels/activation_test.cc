#include "kernels/activation.h"

#include "tests/kernels/activation_reference.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr Activation kAll[] = {Activation::kIdentity, Activation::kSilu, Activation::kSigmoid,
                               Activation::kLogSigmoid};

struct ActivationCase {
  Activation activation = Activation::kSilu;
  Shape shape;
  double spread = 2;
  int threads = 1;
  int64_t gap = Gapped::kGap;
};

void expect_row(const ActivationKernel& row, DType wide, const ActivationCase& c) {
  SCOPED_TRACE(to_string(c.activation) + " " + c.shape.to_string() + " to " +
               std::string(name(wide)));
  const double scale = 0.0625;
  const Gapped x(row.dtype, c.shape, c.gap), dx(row.dtype, c.shape, c.gap);
  const Gapped y(wide, c.shape, c.gap), dy(wide, c.shape, c.gap);
  fill_random(x, 1, c.spread);
  fill_random(dy, 2);
  const std::vector<double> at = values(x), d = values(dy);
  std::vector<double> expected_y, expected_dx;
  for (size_t i = 0; i < at.size(); ++i) {
    expected_y.push_back(scale * true_value(c.activation, at[i]));
    expected_dx.push_back(d[i] * scale * true_slope(c.activation, at[i]));
  }
  Rig(c.threads).run([&](const Context& ctx) {
    row.forward(ctx, {.activation = c.activation, .scale = scale, .x = x, .y = y});
    row.backward(ctx, {.activation = c.activation, .scale = scale, .dy = dy, .x = x, .dx = dx});
  });
  const double rounding = 8 * epsilon(accumulator(row.dtype));
  expect_near(y, expected_y, rounding + epsilon(wide), "y");
  expect_near(dx, expected_dx, rounding + epsilon(row.dtype), "dx");
  EXPECT_TRUE(y.gaps_intact() && dx.gaps_intact() && x.gaps_intact());
}

// To x's own type and to its accumulator type.
template <class F>
void for_each_output(F f) {
  for_each_row_and_instruction_set(&Backend::activation, [&](const ActivationKernel& row) {
    f(row, row.dtype);
    if (accumulator(row.dtype) != row.dtype) f(row, accumulator(row.dtype));
  });
}

TEST(Activation, ForwardAndBackward) {
  for_each_output([](const ActivationKernel& row, DType wide) {
    for (const Activation activation : kAll) {
      for (int threads : numbers_of_threads({1, 3})) {
        for (const Shape& shape : {Shape{0, 5}, Shape{3, 31}, Shape{300, 129}}) {
          expect_row(row, wide, {.activation = activation, .shape = shape, .threads = threads});
        }
      }
      for (int64_t columns : {1, 2, 7, 8, 9, 16, 17, 33}) {
        for (int64_t gap : {Gapped::kGap, Gapped::kAlignedGap}) {
          expect_row(row, wide, {.activation = activation, .shape = {2, columns}, .gap = gap});
        }
      }
      // So far out that e^x or e^-x overflows or vanishes.
      expect_row(row, wide, {.activation = activation, .shape = {4, 50}, .spread = 400});
    }
  });
}

// Each value alone: a norm would not see the digits of small ones, such as log gates near 0.
TEST(Activation, SmallValuesKeepTheirDigits) {
  for_each_output([](const ActivationKernel& row, DType wide) {
    constexpr int64_t kCount = 4001;
    const DeviceTensor x(row.dtype, {1, kCount}), y(wide, {1, kCount}), dx(row.dtype, {1, kCount});
    const DeviceTensor dy = filled(wide, {1, kCount}, 1);
    set(x, [](int64_t i) { return (static_cast<double>(i) - 2000) / 2000 * 80; });
    const std::vector<double> at = values(x);
    const double rounding = 6 * epsilon(accumulator(row.dtype));
    for (const Activation activation : kAll) {
      SCOPED_TRACE(to_string(activation));
      Rig(1).run([&](const Context& ctx) {
        row.forward(ctx, {.activation = activation, .x = x, .y = y});
        row.backward(ctx, {.activation = activation, .dy = dy, .x = x, .dx = dx});
      });
      const std::vector<double> got = values(y), slope = values(dx);
      for (size_t i = 0; i < at.size(); ++i) {
        const double value = true_value(activation, at[i]);
        ASSERT_NEAR(got[i], value, (rounding + epsilon(wide)) * std::abs(value)) << at[i];
        // SiLU's slope crosses 0.
        if (activation == Activation::kSilu) continue;
        const double expected = true_slope(activation, at[i]);
        ASSERT_NEAR(slope[i], expected, (rounding + epsilon(row.dtype)) * expected) << at[i];
      }
    }
  });
}

TEST(Activation, FiniteDifferences) {
  for_each_row(&Backend::activation, [](const ActivationKernel& row) {
    if (row.dtype != DType::kF64) return;
    constexpr double kStep = 1e-6, kScale = 0.3;
    const Shape shape{3, 21};
    const DeviceTensor x = random(row.dtype, shape, 1, 3.0), dy = random(row.dtype, shape, 2);
    const DeviceTensor y(row.dtype, shape), dx(row.dtype, shape), moved(row.dtype, shape);
    const std::vector<double> at = values(x), d = values(dy);
    for (const Activation activation : kAll) {
      SCOPED_TRACE(to_string(activation));
      const auto value_at = [&](double step) {
        set(moved, [&](int64_t i) { return at[static_cast<size_t>(i)] + step; });
        Rig(1).run([&](const Context& ctx) {
          row.forward(ctx, {.activation = activation, .scale = kScale, .x = moved, .y = y});
        });
        return values(y);
      };
      const std::vector<double> up = value_at(kStep), down = value_at(-kStep);
      Rig(1).run([&](const Context& ctx) {
        row.backward(ctx, {.activation = activation, .scale = kScale, .dy = dy, .x = x, .dx = dx});
      });
      const std::vector<double> got = values(dx);
      for (size_t i = 0; i < at.size(); ++i) {
        EXPECT_NEAR(got[i], d[i] * (up[i] - down[i]) / (2 * kStep), 1e-8);
      }
    }
  });
}

TEST(Activation, NanIsNotHidden) {
  for_each_output([](const ActivationKernel& row, DType wide) {
    const DeviceTensor x = filled(row.dtype, {1, 40}, std::nan("")), dx(row.dtype, {1, 40});
    const DeviceTensor y(wide, {1, 40}), dy = filled(wide, {1, 40}, 1);
    for (const Activation activation : kAll) {
      SCOPED_TRACE(to_string(activation));
      Rig(1).run([&](const Context& ctx) {
        row.forward(ctx, {.activation = activation, .x = x, .y = y});
        row.backward(ctx, {.activation = activation, .dy = dy, .x = x, .dx = dx});
      });
      for (double v : values(y)) EXPECT_TRUE(std::isnan(v));
      if (activation == Activation::kIdentity) continue;  // whose slope is 1
      for (double v : values(dx)) EXPECT_TRUE(std::isnan(v));
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
