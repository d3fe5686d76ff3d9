#include "kernels/decay_gate.h"

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

struct Truth {
  std::vector<double> y, dx, da_log, dbias;
};

Truth truth(const std::vector<double>& x, const std::vector<double>& a_log,
            const std::vector<double>& bias, const std::vector<double>& dy) {
  const size_t heads = bias.size();
  Truth result;
  std::vector<long double> da_log(heads), dbias(heads);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t h = i % heads;
    const long double z = static_cast<long double>(x[i]) + bias[h], rate = std::exp(a_log[h]);
    const long double y = -rate * std::log1p(std::exp(z)), slope = -rate / (1 + std::exp(-z));
    result.y.push_back(static_cast<double>(y));
    result.dx.push_back(static_cast<double>(dy[i] * slope));
    da_log[h] += dy[i] * y;
    dbias[h] += dy[i] * slope;
  }
  result.da_log.assign(da_log.begin(), da_log.end());
  result.dbias.assign(dbias.begin(), dbias.end());
  return result;
}

struct Problem {
  Problem(DType dtype_, int64_t tokens, int64_t heads, double spread = 2,
          int64_t gap = Gapped::kGap)
      : dtype(dtype_),
        acc(accumulator(dtype_)),
        x(dtype, {tokens, heads}, gap),
        dx(dtype, {tokens, heads}, gap),
        y(acc, {tokens, heads}, gap),
        dy(acc, {tokens, heads}, gap),
        a_log(random(dtype, {heads}, 3)),
        bias(random(dtype, {heads}, 4, 2)),
        da_log(acc, {heads}),
        dbias(acc, {heads}) {
    fill_random(x, 1, spread);
    fill_random(dy, 2);
  }
  void forward(const DecayGateKernel& row, Rig& rig) const {
    rig.run([&](const Context& ctx) {
      row.forward(ctx, {.x = x, .a_log = a_log, .bias = bias, .y = y});
    });
  }
  void backward(const DecayGateKernel& row, Rig& rig) const {
    rig.run([&](const Context& ctx) {
      row.backward(ctx, {.dy = dy,
                         .x = x,
                         .a_log = a_log,
                         .bias = bias,
                         .dx = dx,
                         .da_log = da_log,
                         .dbias = dbias});
    });
  }

  DType dtype, acc;
  Gapped x, dx, y, dy;
  DeviceTensor a_log, bias, da_log, dbias;
};

void expect_problem(const DecayGateKernel& row, const Problem& p, int threads) {
  SCOPED_TRACE(p.x.view().shape().to_string());
  const Truth t = truth(values(p.x), values(p.a_log), values(p.bias), values(p.dy));
  // Gradients of parameters are added to what is there.
  set(p.da_log, [](int64_t) { return 0.5; });
  set(p.dbias, [](int64_t) { return -0.5; });
  std::vector<double> expected_a = t.da_log, expected_bias = t.dbias;
  for (double& v : expected_a) v += 0.5;
  for (double& v : expected_bias) v -= 0.5;
  Rig rig(threads);
  p.forward(row, rig);
  p.backward(row, rig);
  const double tolerance = 16 * epsilon(p.acc);
  // Terms of either sign cancel to about the root of their number.
  const double terms = norm(values(p.dy)) + norm(t.y);
  expect_near(p.y, t.y, tolerance, "y");
  expect_near(p.dx, t.dx, tolerance + epsilon(row.dtype), "dx");
  expect_near(p.da_log, expected_a, tolerance, "da_log", terms);
  expect_near(p.dbias, expected_bias, tolerance, "dbias", terms);
  EXPECT_TRUE(p.y.gaps_intact() && p.dx.gaps_intact());
}

TEST(DecayGate, ForwardAndBackward) {
  for_each_row_and_instruction_set(&Backend::decay_gate, [](const DecayGateKernel& row) {
    for (int threads : numbers_of_threads({1, 3})) {
      for (const auto& [tokens, heads] :
           std::vector<std::pair<int64_t, int64_t>>{{0, 4}, {1, 1}, {3, 17}, {1300, 24}, {2, 70}}) {
        expect_problem(row, Problem(row.dtype, tokens, heads), threads);
      }
    }
    for (int64_t heads : short_lengths()) {
      for (int64_t gap : {Gapped::kGap, Gapped::kAlignedGap}) {
        expect_problem(row, Problem(row.dtype, 3, heads, 2, gap), 1);
      }
    }
    // So far out that e^x overflows or vanishes.
    expect_problem(row, Problem(row.dtype, 7, 20, 400), 1);
  });
}

TEST(DecayGate, FiniteDifferences) {
  for_each_row(&Backend::decay_gate, [](const DecayGateKernel& row) {
    if (row.dtype != DType::kF64) return;
    constexpr double kStep = 1e-6;
    const Problem p(row.dtype, 4, 5);
    Rig rig(1);
    p.backward(row, rig);
    const std::vector<double> dy = values(p.dy);
    const auto loss = [&] {
      p.forward(row, rig);
      const std::vector<double> y = values(p.y);
      return std::inner_product(y.begin(), y.end(), dy.begin(), 0.0);
    };
    const auto compare = [&](const TensorView& operand, const TensorView& gradient) {
      const std::vector<double> at = values(operand), expected = values(gradient);
      const auto loss_at = [&](size_t moved, double step) {
        set(operand, [&](int64_t n) {
          const auto i = static_cast<size_t>(n);
          return at[i] + (i == moved ? step : 0.0);
        });
        return loss();
      };
      for (size_t i = 0; i < at.size(); ++i) {
        EXPECT_NEAR((loss_at(i, kStep) - loss_at(i, -kStep)) / (2 * kStep), expected[i], 1e-7);
      }
      set(operand, [&](int64_t n) { return at[static_cast<size_t>(n)]; });
    };
    compare(p.x, p.dx);
    compare(p.a_log, p.da_log);
    compare(p.bias, p.dbias);
  });
}

TEST(DecayGate, GradientsDoNotDependOnThreads) {
  for_each_row_and_instruction_set(&Backend::decay_gate, [](const DecayGateKernel& row) {
    std::vector<Problem> runs;
    for (int threads : {1, 3, 4}) {
      runs.emplace_back(row.dtype, 3333, 24);
      Rig rig(threads);
      runs.back().backward(row, rig);
      EXPECT_TRUE(same_bits(runs.front().da_log, runs.back().da_log));
      EXPECT_TRUE(same_bits(runs.front().dbias, runs.back().dbias));
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
