#include "kernels/gemm.h"

#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

struct Sizes {
  int64_t m, n, k;
};

std::vector<double> product(const std::vector<double>& a, const std::vector<double>& b,
                            const Sizes& s, bool ta, bool tb, const std::vector<double>& c,
                            double beta) {
  std::vector<double> result(static_cast<size_t>(s.m * s.n), 0.0);
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = beta == 0.0 ? 0.0 : c[static_cast<size_t>(i * s.n + j)];
      for (int64_t p = 0; p < s.k; ++p) {
        sum += a[static_cast<size_t>(ta ? p * s.m + i : i * s.k + p)] *
               b[static_cast<size_t>(tb ? j * s.k + p : p * s.n + j)];
      }
      result[static_cast<size_t>(i * s.n + j)] = sum;
    }
  }
  return result;
}

// A sum of k products in the accumulator type errs by about eps sqrt(k) relative to the norm of its
// terms, whose sum is sqrt(k) smaller or larger at random: 4 eps sqrt(k) leaves room for the
// spread. Rounding the result adds its own eps.
double tolerance(DType dtype, DType c, int64_t k) {
  return 4 * epsilon(accumulator(dtype)) * std::sqrt(static_cast<double>(k) + 1) + epsilon(c);
}

void expect_product(const GemmKernel& row, const Sizes& s, bool ta, bool tb, DType c_type,
                    double beta, int threads) {
  SCOPED_TRACE(::testing::Message()
               << s.m << "x" << s.n << "x" << s.k << " ta " << ta << " tb " << tb << " beta "
               << beta << " c " << name(c_type) << " threads " << threads);
  Rig rig(threads);
  Gapped a(row.dtype, ta ? Shape{s.k, s.m} : Shape{s.m, s.k});
  Gapped b(row.dtype, tb ? Shape{s.n, s.k} : Shape{s.k, s.n});
  Gapped c(c_type, {s.m, s.n});  // NaN, which beta = 0 must not read
  fill_random(a, 1);
  fill_random(b, 2);
  if (beta != 0.0) fill_random(c, 3);
  const std::vector<double> expected = product(values(a), values(b), s, ta, tb, values(c), beta);
  rig.run([&](const Context& ctx) {
    row.run(ctx, {.transpose_a = ta ? Transpose::kYes : Transpose::kNo,
                  .transpose_b = tb ? Transpose::kYes : Transpose::kNo,
                  .a = a,
                  .b = b,
                  .c = c,
                  .beta = beta});
  });
  expect_near(c, expected, tolerance(row.dtype, c_type, s.k), "c");
  EXPECT_TRUE(c.gaps_intact());
}

TEST(Gemm, EveryFormAndShape) {
  for_each_row(&Backend::gemm, [](const GemmKernel& row) {
    for (const Sizes& s : std::vector<Sizes>{{1, 1, 1},
                                             {7, 5, 3},
                                             {33, 65, 17},
                                             {130, 70, 64},
                                             {1, 200, 31},
                                             {200, 1, 31},
                                             {40, 33, 1100},
                                             {0, 5, 3},
                                             {5, 0, 3},
                                             {5, 7, 0}}) {
      for (bool ta : {false, true}) {
        for (bool tb : {false, true}) {
          for (double beta : {0.0, 1.0}) {
            expect_product(row, s, ta, tb, row.dtype, beta, 2);
            if (row.dtype == DType::kBF16) expect_product(row, s, ta, tb, DType::kF32, beta, 2);
          }
        }
      }
    }
  });
}

// More than one tile in both directions, with edges.
TEST(Gemm, ManyTiles) {
  for_each_row(&Backend::gemm, [](const GemmKernel& row) {
    for (int threads : {1, 3}) {
      expect_product(row, {1100, 523, 40}, false, true, accumulator(row.dtype), 1.0, threads);
    }
  });
}

TEST(Gemm, RerunsAreBitIdentical) {
  for_each_row(&Backend::gemm, [](const GemmKernel& row) {
    for (int threads : {1, 3}) {
      Rig rig(threads);
      const Tensor a = random(row.dtype, {3000, 96}, 1), b = random(row.dtype, {3000, 80}, 2);
      Tensor first;
      for (int rerun = 0; rerun < 4; ++rerun) {
        Tensor c = poisoned(accumulator(row.dtype), {96, 80});
        rig.run([&](const Context& ctx) {
          row.run(ctx, {.transpose_a = Transpose::kYes, .a = a, .b = b, .c = c});
        });
        if (rerun == 0) {
          first = std::move(c);
        } else {
          EXPECT_TRUE(same_bits(first, c));
        }
      }
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
