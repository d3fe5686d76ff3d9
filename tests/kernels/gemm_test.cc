#include "kernels/gemm.h"

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"
#include "tests/slow_build.h"

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

// All forms of one product, into both types of c.
void expect_all_forms(const GemmKernel& row, const Sizes& s, int threads) {
  for (bool ta : {false, true}) {
    for (bool tb : {false, true}) {
      for (double beta : {0.0, 1.0}) {
        expect_product(row, s, ta, tb, row.dtype, beta, threads);
        if (row.dtype == DType::kBF16) expect_product(row, s, ta, tb, DType::kF32, beta, threads);
      }
    }
  }
}

TEST(Gemm, EveryFormAndShape) {
  for_each_row_and_instruction_set(&Backend::gemm, [](const GemmKernel& row) {
    for (const Sizes& s : std::vector<Sizes>{{1, 1, 1},
                                             {7, 5, 3},
                                             {33, 65, 17},
                                             {130, 70, 64},
                                             {1, 200, 31},
                                             {200, 1, 31},
                                             {0, 5, 3},
                                             {5, 0, 3},
                                             {5, 7, 0}}) {
      expect_all_forms(row, s, 2);
    }
  });
}

// Register tiles of every height and their neighbours; panels that are full, short by one, or one
// lane over; odd k, where words of two bf16 are completed.
TEST(Gemm, BordersOfRegisterTiles) {
  for_each_row_and_instruction_set(&Backend::gemm, [](const GemmKernel& row) {
    for (int64_t m : {2, 3, 4, 5, 6, 8, 11, 13}) expect_all_forms(row, {m, 63, 9}, 1);
    for (int64_t n : {2, 8, 15, 16, 17, 31, 33, 48, 64, 80, 127, 129}) {
      expect_all_forms(row, {9, n, 6}, 1);
    }
    for (int64_t k : {2, 3, 4, 5, 7, 8, 15, 31}) expect_all_forms(row, {7, 17, k}, 1);
  });
}

// Sums over several chunks of k, which a c of bf16 must not round in between, and more rows than
// are packed together.
TEST(Gemm, LongSums) {
  for_each_row_and_instruction_set(&Backend::gemm, [](const GemmKernel& row) {
    expect_all_forms(row, {13, 37, 2311}, 2);
    if (!test::slow_build()) expect_all_forms(row, {209, 67, 1031}, 3);
  });
}

// The sum is rounded once, at the end: bf16 sums of ones, or of chunks of ones, would go astray.
TEST(Gemm, SumsAreRoundedOnce) {
  for_each_row_and_instruction_set(&Backend::gemm, [](const GemmKernel& row) {
    constexpr int64_t kOnes = 6000;
    Rig rig(1);
    const DeviceTensor a = filled(row.dtype, {1, kOnes}, 1.0),
                       b = filled(row.dtype, {1, kOnes}, 1.0);
    const DeviceTensor c = filled(row.dtype, {1, 1}, 48.0);
    rig.run([&](const Context& ctx) {
      row.run(ctx, {.transpose_b = Transpose::kYes, .a = a, .b = b, .c = c});
    });
    visit_float(row.dtype, [&]<class T>() {
      EXPECT_EQ(values(c)[0],
                static_cast<double>(static_cast<T>(static_cast<Accumulator<T>>(kOnes))));
    });
  });
}

TEST(Gemm, NanAndInfinityReachTheirRowsAndColumnsOnly) {
  for_each_row_and_instruction_set(&Backend::gemm, [](const GemmKernel& row) {
    for (bool ta : {false, true}) {
      for (bool tb : {false, true}) {
        constexpr int64_t kM = 9, kN = 19, kK = 13;
        DeviceTensor a = filled(row.dtype, ta ? Shape{kK, kM} : Shape{kM, kK}, 1.0);
        DeviceTensor b = filled(row.dtype, tb ? Shape{kN, kK} : Shape{kK, kN}, 1.0);
        const DeviceTensor c = poisoned(row.dtype, {kM, kN});
        constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
        constexpr double kInfinity = std::numeric_limits<double>::infinity();
        set(a, [&](int64_t i) { return i == (ta ? 12 * kM + 7 : 7 * kK + 12) ? kNan : 1.0; });
        set(b,
            [&](int64_t i) { return i == (tb ? 18 * kK + 12 : 12 * kN + 18) ? kInfinity : 1.0; });
        Rig(1).run([&](const Context& ctx) {
          row.run(ctx, {.transpose_a = ta ? Transpose::kYes : Transpose::kNo,
                        .transpose_b = tb ? Transpose::kYes : Transpose::kNo,
                        .a = a,
                        .b = b,
                        .c = c});
        });
        const std::vector<double> got = values(c);
        for (int64_t i = 0; i < kM; ++i) {
          for (int64_t j = 0; j < kN; ++j) {
            const double v = got[static_cast<size_t>(i * kN + j)];
            if (i == 7) {
              EXPECT_TRUE(std::isnan(v)) << i << " " << j;
            } else {
              EXPECT_EQ(v, j == 18 ? kInfinity : double{kK}) << i << " " << j;
            }
          }
        }
      }
    }
  });
}

// More than one task in both directions, with edges.
TEST(Gemm, ManyTiles) {
  for_each_row_and_instruction_set(&Backend::gemm, [](const GemmKernel& row) {
    for (int threads : numbers_of_threads({1, 3})) {
      for (bool ta : {false, true}) {
        expect_product(row, {1100, 523, 40}, ta, !ta, accumulator(row.dtype), 1.0, threads);
      }
    }
  });
}

TEST(Gemm, RerunsAreBitIdentical) {
  for_each_row_and_instruction_set(&Backend::gemm, [](const GemmKernel& row) {
    for (int threads : numbers_of_threads({1, 3})) {
      Rig rig(threads);
      const DeviceTensor a = random(row.dtype, {3000, 96}, 1), b = random(row.dtype, {3000, 80}, 2);
      DeviceTensor first;
      for (int rerun = 0; rerun < 4; ++rerun) {
        DeviceTensor c = poisoned(accumulator(row.dtype), {96, 80});
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
