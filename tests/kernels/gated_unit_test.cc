#include "kernels/gated_unit.h"

#include "tests/kernels/activation_reference.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr Activation kGates[] = {Activation::kSilu, Activation::kSigmoid, Activation::kIdentity};

void expect_row(const GatedUnitKernel& row, Activation activation, const Shape& shape, double scale,
                int threads, int64_t gap = Gapped::kGap) {
  SCOPED_TRACE(to_string(activation) + " " + shape.to_string());
  Rig rig(threads);
  Gapped gate(row.dtype, shape, gap), up(row.dtype, shape, gap), dy(row.dtype, shape, gap);
  Gapped y(row.dtype, shape, gap), dgate(row.dtype, shape, gap), dup(row.dtype, shape, gap);
  fill_random(gate, 1, scale);
  fill_random(up, 2);
  fill_random(dy, 3);
  const std::vector<double> g = values(gate), u = values(up), d = values(dy);
  std::vector<double> expected_y, expected_dgate, expected_dup;
  for (size_t i = 0; i < g.size(); ++i) {
    expected_y.push_back(true_value(activation, g[i]) * u[i]);
    expected_dup.push_back(d[i] * true_value(activation, g[i]));
    expected_dgate.push_back(d[i] * u[i] * true_slope(activation, g[i]));
  }
  rig.run([&](const Context& ctx) {
    row.forward(ctx, {.activation = activation, .gate = gate, .up = up, .y = y});
    row.backward(
        ctx,
        {.activation = activation, .dy = dy, .gate = gate, .up = up, .dgate = dgate, .dup = dup});
  });
  // A handful of operations per element and an exponential to 1 ulp, then one rounding.
  const double tolerance = 8 * epsilon(accumulator(row.dtype)) + epsilon(row.dtype);
  expect_near(y, expected_y, tolerance, "y");
  expect_near(dgate, expected_dgate, tolerance, "dgate");
  expect_near(dup, expected_dup, tolerance, "dup");
  EXPECT_TRUE(y.gaps_intact() && dgate.gaps_intact() && dup.gaps_intact());
}

TEST(GatedUnit, ForwardAndBackward) {
  for_each_row_and_instruction_set(&Backend::gated_unit, [](const GatedUnitKernel& row) {
    for (const Activation activation : kGates) {
      for (int threads : numbers_of_threads({1, 3})) {
        for (const Shape& shape : {Shape{0, 5}, Shape{1, 1}, Shape{3, 31}, Shape{40, 129}}) {
          expect_row(row, activation, shape, 2.0, threads);
        }
      }
      for (int64_t columns : short_lengths()) {
        for (int64_t gap : {Gapped::kGap, Gapped::kAlignedGap}) {
          expect_row(row, activation, {2, columns}, 2.0, 1, gap);
        }
      }
      // Gates so large that e^-x overflows or vanishes.
      expect_row(row, activation, {4, 50}, 400.0, 1);
    }
  });
}

// Each value alone: a norm would not see the digits of small ones.
TEST(GatedUnit, SmallValuesKeepTheirDigits) {
  for_each_row_and_instruction_set(&Backend::gated_unit, [](const GatedUnitKernel& row) {
    constexpr int64_t kCount = 4001;
    const DeviceTensor gate(row.dtype, {1, kCount}), up = filled(row.dtype, {1, kCount}, 1);
    const DeviceTensor y(row.dtype, {1, kCount});
    set(gate, [](int64_t i) { return (static_cast<double>(i) - 2000) / 2000 * 80; });
    const std::vector<double> x = values(gate);
    const double tolerance = 4 * epsilon(accumulator(row.dtype)) + epsilon(row.dtype);
    for (const Activation activation : kGates) {
      SCOPED_TRACE(to_string(activation));
      Rig(1).run([&](const Context& ctx) {
        row.forward(ctx, {.activation = activation, .gate = gate, .up = up, .y = y});
      });
      const std::vector<double> got = values(y);
      for (size_t i = 0; i < x.size(); ++i) {
        const double expected = true_value(activation, x[i]);
        EXPECT_NEAR(got[i], expected, tolerance * std::abs(expected)) << x[i];
      }
    }
  });
}

// Both gradients of sum(dy * y), from forward alone.
TEST(GatedUnit, FiniteDifferences) {
  for_each_row(&Backend::gated_unit, [](const GatedUnitKernel& row) {
    if (row.dtype != DType::kF64) return;
    constexpr double kStep = 1e-6;
    const Shape shape{3, 21};
    const DeviceTensor gate = random(row.dtype, shape, 1), up = random(row.dtype, shape, 2),
                       dy = random(row.dtype, shape, 3);
    const DeviceTensor y(row.dtype, shape), dgate(row.dtype, shape), dup(row.dtype, shape);
    const std::vector<double> g = values(gate), u = values(up), d = values(dy);
    for (const Activation activation : kGates) {
      SCOPED_TRACE(to_string(activation));
      const auto value_at = [&](double gate_step, double up_step) {
        const auto at = [](const std::vector<double>& x, double step) {
          return [&x, step](int64_t i) { return x[static_cast<size_t>(i)] + step; };
        };
        const DeviceTensor moved_gate(row.dtype, shape), moved_up(row.dtype, shape);
        set(moved_gate, at(g, gate_step));
        set(moved_up, at(u, up_step));
        Rig(1).run([&](const Context& ctx) {
          row.forward(ctx, {.activation = activation, .gate = moved_gate, .up = moved_up, .y = y});
        });
        return values(y);
      };
      const std::vector<double> gate_plus = value_at(kStep, 0), gate_minus = value_at(-kStep, 0);
      const std::vector<double> up_plus = value_at(0, kStep), up_minus = value_at(0, -kStep);
      Rig(1).run([&](const Context& ctx) {
        row.backward(ctx, {.activation = activation,
                           .dy = dy,
                           .gate = gate,
                           .up = up,
                           .dgate = dgate,
                           .dup = dup});
      });
      const std::vector<double> got_gate = values(dgate), got_up = values(dup);
      for (size_t i = 0; i < g.size(); ++i) {
        EXPECT_NEAR(got_gate[i], d[i] * (gate_plus[i] - gate_minus[i]) / (2 * kStep), 1e-8);
        EXPECT_NEAR(got_up[i], d[i] * (up_plus[i] - up_minus[i]) / (2 * kStep), 1e-8);
      }
    }
  });
}

TEST(GatedUnit, NanIsNotHidden) {
  for_each_row_and_instruction_set(&Backend::gated_unit, [](const GatedUnitKernel& row) {
    Rig rig(1);
    const DeviceTensor gate = filled(row.dtype, {1, 40}, std::nan("")),
                       up = filled(row.dtype, {1, 40}, 1);
    const DeviceTensor y(row.dtype, {1, 40});
    for (const Activation activation : kGates) {
      rig.run([&](const Context& ctx) {
        row.forward(ctx, {.activation = activation, .gate = gate, .up = up, .y = y});
      });
      for (double v : values(y)) EXPECT_TRUE(std::isnan(v));
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
