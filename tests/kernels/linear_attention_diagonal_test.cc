// What tokens contribute to themselves in linear attention, every row of every table, against sums
// in fp64.
#include "kernels/linear_attention_diagonal.h"

#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

struct Shapes {
  int64_t tokens, heads, products, width;
};

void expect_row(const LinearAttentionDiagonalKernel& row, const Shapes& s, int threads) {
  SCOPED_TRACE("T " + std::to_string(s.tokens) + ", Da " + std::to_string(s.products) + ", Dc " +
               std::to_string(s.width));
  const Gapped a(row.dtype, {s.tokens, s.heads, s.products}),
      b(row.dtype, {s.tokens, s.heads, s.products}), c(row.dtype, {s.tokens, s.heads, s.width});
  fill_random(a.view(), 1);
  fill_random(b.view(), 2);
  fill_random(c.view(), 3);
  const DeviceTensor y = random(accumulator(row.dtype), {s.tokens, s.heads, s.width}, 4);
  std::vector<double> truth = values(y);
  const std::vector<double> left = values(a), right = values(b), from = values(c);
  const double terms = norm(truth);
  for (int64_t n = 0; n < s.tokens * s.heads; ++n) {
    double product = 0;
    for (int64_t d = 0; d < s.products; ++d) {
      const auto at = static_cast<size_t>(n * s.products + d);
      product += left[at] * right[at];
    }
    for (int64_t e = 0; e < s.width; ++e) {
      const auto at = static_cast<size_t>(n * s.width + e);
      truth[at] -= product * from[at];
    }
  }
  Rig rig(threads);
  rig.run([&](const Context& ctx) { row.subtract(ctx, {a, b, c, y}); });
  expect_near(y, truth, 10 * epsilon(accumulator(row.dtype)), "y", terms);
  for (const Gapped* x : {&a, &b, &c}) EXPECT_TRUE(x->gaps_intact());
}

TEST(LinearAttentionDiagonal, EveryShape) {
  for_each_row(&Backend::linear_attention_diagonal, [](const LinearAttentionDiagonalKernel& row) {
    for (const Shapes& s : {Shapes{0, 2, 8, 8}, Shapes{1, 1, 1, 1}, Shapes{5, 0, 8, 8},
                            Shapes{67, 3, 16, 24}, Shapes{9, 2, 71, 40}, Shapes{4, 2, 128, 256}}) {
      for (const int threads : numbers_of_threads({1, 3})) expect_row(row, s, threads);
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
