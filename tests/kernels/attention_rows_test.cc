// The parts of attention that are one pass over memory, on rows of every short length.
#include "kernels/attention.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr int64_t kTokens = 7, kHeads = 3;

TEST(AttentionRows, Init) {
  for_each_row(&Backend::attention, [](const AttentionKernel& row) {
    const DType acc = accumulator(row.dtype);
    const DeviceTensor out = poisoned(acc, {kTokens, kHeads, 5}),
                       lse = poisoned(acc, {kHeads, kTokens});
    Rig(3).run([&](const Context& ctx) { row.init(ctx, out, lse); });
    for (double v : values(out)) EXPECT_EQ(v, 0.0);
    for (double v : values(lse)) EXPECT_EQ(v, -std::numeric_limits<double>::infinity());
  });
}

void expect_delta(const AttentionKernel& row, DType out_type, int64_t dim) {
  SCOPED_TRACE(dim);
  const Shape shape{kTokens, kHeads, dim};
  Gapped out(out_type, shape), dout(row.dtype, shape);
  fill_random(out, 1);
  fill_random(dout, 2);
  const DeviceTensor delta = poisoned(accumulator(row.dtype), {kHeads, kTokens});
  Rig(2).run([&](const Context& ctx) { row.delta(ctx, out, dout, delta); });
  const std::vector<double> o = values(out), g = values(dout);
  std::vector<double> expected(static_cast<size_t>(kHeads * kTokens)), terms = expected;
  for (int64_t i = 0; i < kTokens * kHeads * dim; ++i) {
    const auto at = static_cast<size_t>(i / dim % kHeads * kTokens + i / dim / kHeads);
    const double term = o[static_cast<size_t>(i)] * g[static_cast<size_t>(i)];
    expected[at] += term;
    terms[at] += std::abs(term);
  }
  expect_near(delta, expected, 8 * epsilon(accumulator(row.dtype)), "delta", norm(terms));
}

TEST(AttentionRows, Delta) {
  for_each_row_and_instruction_set(&Backend::attention, [](const AttentionKernel& row) {
    for (DType out_type : {row.dtype, accumulator(row.dtype)}) {
      for (int64_t dim : short_lengths()) expect_delta(row, out_type, dim);
      expect_delta(row, out_type, 192);
    }
  });
}

void expect_merge(const AttentionKernel& row, int64_t dim) {
  SCOPED_TRACE(dim);
  const DType acc = accumulator(row.dtype);
  const Shape shape{kTokens, kHeads, dim};
  const DeviceTensor part = random(acc, shape, 1), part_lse = random(acc, {kHeads, kTokens}, 2);
  const DeviceTensor out = random(acc, shape, 3), lse = random(acc, {kHeads, kTokens}, 4);
  const std::vector<double> p = values(part), p_lse = values(part_lse), o = values(out);
  const std::vector<double> o_lse = values(lse);
  std::vector<double> expected, expected_lse(p_lse.size());
  for (int64_t i = 0; i < kTokens * kHeads * dim; ++i) {
    const auto at = static_cast<size_t>(i / dim % kHeads * kTokens + i / dim / kHeads);
    // Weighted by the sums of exponentials that the parts stand for.
    const double a = std::exp(o_lse[at]), b = std::exp(p_lse[at]);
    const auto e = static_cast<size_t>(i);
    expected.push_back((o[e] * a + p[e] * b) / (a + b));
    expected_lse[at] = std::log(a + b);
  }
  Rig(2).run([&](const Context& ctx) {
    if (!ctx.measuring()) row.merge(ctx, part, part_lse, out, lse);
  });
  expect_near(out, expected, 16 * epsilon(acc), "out");
  expect_near(lse, expected_lse, 16 * epsilon(acc), "lse");
}

TEST(AttentionRows, Merge) {
  for_each_row_and_instruction_set(&Backend::attention, [](const AttentionKernel& row) {
    for (int64_t dim : short_lengths()) expect_merge(row, dim);
    expect_merge(row, 192);
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
