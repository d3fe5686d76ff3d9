#include "kernels/lrpe.h"

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

// In extended precision and with plain powers.
long double angle(int64_t position, int64_t i, int64_t count) {
  return static_cast<long double>(position) /
         std::pow(10000.0L, 2.0L * static_cast<long double>(i) / static_cast<long double>(count));
}

TEST(Lrpe, TableIsExactFarOut) {
  const std::vector<int64_t> positions{0, 1, 4095, 1'000'003, 16'000'000};
  const DeviceTensor cos(DType::kF64, {5, 3, 8}), sin(DType::kF64, {5, 3, 8});
  lrpe_table(test_stream(), lrpe_frequencies(3, 8), positions, cos, sin);
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t i = 0; i < 24; ++i) {
      const long double a = angle(positions[t], static_cast<int64_t>(i), 24);
      const double bound = 4e-16 * static_cast<double>(positions[t]) + 1e-15;
      EXPECT_NEAR(cos.span<double>()[t * 24 + i], static_cast<double>(std::cos(a)), bound);
      EXPECT_NEAR(sin.span<double>()[t * 24 + i], static_cast<double>(std::sin(a)), bound);
    }
  }
  EXPECT_THROW(lrpe_table(test_stream(), lrpe_frequencies(3, 4), positions, cos, sin), Error);
}

struct Tables {
  Tables(DType dtype, const std::vector<int64_t>& positions, int64_t heads, int64_t dim)
      : cos(dtype, {static_cast<int64_t>(positions.size()), heads, dim}),
        sin(dtype, cos.view().shape()) {
    lrpe_table(test_stream(), lrpe_frequencies(heads, dim), positions, cos, sin);
  }
  DeviceTensor cos, sin;
};

void expect_row(const LrpeKernel& row, int64_t tokens, int64_t heads, int64_t dim,
                int64_t gap = Gapped::kGap) {
  SCOPED_TRACE(::testing::Message() << tokens << " x " << heads << " x " << dim);
  const DType acc = accumulator(row.dtype);
  std::vector<int64_t> positions;
  for (int64_t t = 0; t < tokens; ++t) positions.push_back(t * t);
  const Tables tables(acc, positions, heads, dim);
  const Gapped x(row.dtype, {tokens, heads, dim}, gap), dx(row.dtype, {tokens, heads, dim}, gap);
  const Gapped y(row.dtype, {tokens, heads, 2 * dim}, gap),
      dy(row.dtype, {tokens, heads, 2 * dim}, gap);
  fill_random(x, 1);
  fill_random(dy, 2);
  const std::vector<double> from = values(x), d = values(dy);
  std::vector<double> expected_y(2 * from.size()), expected_dx(from.size());
  const auto width = static_cast<size_t>(dim);
  for (size_t i = 0; i < from.size(); ++i) {
    const size_t head = i / width, at = head * 2 * width + i % width;
    const auto t = static_cast<int64_t>(head) / heads;
    const long double a = angle(t * t, static_cast<int64_t>(i) % (heads * dim), heads * dim);
    const auto c = static_cast<double>(std::cos(a)), s = static_cast<double>(std::sin(a));
    expected_y[at] = from[i] * c;
    expected_y[at + width] = from[i] * s;
    expected_dx[i] = d[at] * c + d[at + width] * s;
  }
  Rig(3).run([&](const Context& ctx) {
    row.forward(ctx, {.cos = tables.cos, .sin = tables.sin, .x = x, .y = y});
    row.backward(ctx, {.cos = tables.cos, .sin = tables.sin, .dy = dy, .dx = dx});
  });
  const double tolerance = 4 * epsilon(acc) + epsilon(row.dtype) + 1e-12;
  expect_near(y, expected_y, tolerance, "y");
  expect_near(dx, expected_dx, tolerance, "dx");
  EXPECT_TRUE(y.gaps_intact() && dx.gaps_intact());
}

TEST(Lrpe, ForwardAndBackward) {
  for_each_row_and_instruction_set(&Backend::lrpe, [](const LrpeKernel& row) {
    expect_row(row, 0, 2, 8);
    expect_row(row, 75, 3, 40);
    for (int64_t dim : short_lengths()) expect_row(row, 3, 2, dim);
    for (int64_t dim : {8, 16, 24, 64}) expect_row(row, 3, 7, dim, Gapped::kAlignedGap);
  });
}

// What it is for: scores depend on the distance of two positions only.
TEST(Lrpe, ScoresDependOnDistance) {
  for_each_row(&Backend::lrpe, [](const LrpeKernel& row) {
    if (row.dtype != DType::kF64) return;
    const auto score = [&](int64_t q_position, int64_t k_position) {
      const Tables tables(row.dtype, {q_position, k_position}, 1, 64);
      const DeviceTensor x = random(row.dtype, {2, 1, 64}, 8), y(row.dtype, {2, 1, 128});
      Rig(1).run([&](const Context& ctx) {
        row.forward(ctx, {.cos = tables.cos, .sin = tables.sin, .x = x, .y = y});
      });
      double sum = 0;
      const std::vector<double> turned = values(y);
      for (size_t d = 0; d < 128; ++d) sum += turned[d] * turned[128 + d];
      return sum;
    };
    EXPECT_NEAR(score(17, 5), score(1'000'017, 1'000'005), 1e-8);
    EXPECT_GT(std::abs(score(17, 5) - score(17, 6)), 1e-3);
  });
}

// y is linear in x, so a step of any size gives the gradient.
TEST(Lrpe, FiniteDifferences) {
  for_each_row(&Backend::lrpe, [](const LrpeKernel& row) {
    if (row.dtype != DType::kF64) return;
    const Tables tables(row.dtype, {3, 8, 1000}, 2, 5);
    const DeviceTensor x = random(row.dtype, {3, 2, 5}, 1), dy = random(row.dtype, {3, 2, 10}, 2);
    const DeviceTensor y(row.dtype, {3, 2, 10}), dx(row.dtype, {3, 2, 5});
    const std::vector<double> at = values(x), d = values(dy);
    const auto loss_at = [&](size_t moved, double step) {
      set(x, [&](int64_t i) {
        const auto n = static_cast<size_t>(i);
        return at[n] + (n == moved ? step : 0.0);
      });
      Rig(1).run([&](const Context& ctx) {
        row.forward(ctx, {.cos = tables.cos, .sin = tables.sin, .x = x, .y = y});
      });
      const std::vector<double> out = values(y);
      return std::inner_product(out.begin(), out.end(), d.begin(), 0.0);
    };
    Rig(1).run([&](const Context& ctx) {
      row.backward(ctx, {.cos = tables.cos, .sin = tables.sin, .dy = dy, .dx = dx});
    });
    const std::vector<double> got = values(dx);
    for (size_t i = 0; i < at.size(); ++i) {
      EXPECT_NEAR(got[i], (loss_at(i, 0.5) - loss_at(i, -0.5)), 1e-12);
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
