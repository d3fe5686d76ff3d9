#include "kernels/pointwise.h"

#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr DType kFloats[] = {DType::kBF16, DType::kF32, DType::kF64};

// f(row) for every backend's one row.
template <class F>
void for_each_pointwise(F f) {
  int tested = 0;
  for (const Backend* backend : {&cpu_backend(), &cuda_backend()}) {
    for (const PointwiseKernel& row : backend->pointwise) {
      SCOPED_TRACE(std::string(row.name));
      f(row);
      ++tested;
    }
  }
  EXPECT_GT(tested, 0);
}

TEST(Pointwise, FillZero) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64, DType::kI32, DType::kI64}) {
      const Tensor x = poisoned(dtype, {3, 50000});
      Rig(3).run([&](const Context& ctx) { row.fill_zero(ctx, x); });
      for (int64_t i = 0; i < x.view().bytes(); ++i) ASSERT_EQ(x.view().raw()[i], std::byte{0});
    }
  });
}

TEST(Pointwise, CopyConvertsAnyPair) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (DType from : kFloats) {
      for (DType to : kFloats) {
        Gapped x(from, {37, 3, 20}), y(to, {37, 3, 20});
        fill_random(x, 1);
        Rig(2).run([&](const Context& ctx) { row.copy(ctx, x, y); });
        // Rounding the exact value once; widening changes nothing.
        const std::vector<double> exact = values(x);
        const Tensor expected(to, {37, 3, 20});
        set(expected, [&](int64_t i) { return exact[static_cast<size_t>(i)]; });
        EXPECT_EQ(values(y), values(expected));
        EXPECT_TRUE(y.gaps_intact());
      }
    }
  });
}

TEST(Pointwise, AddToAndAdd) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (DType to : kFloats) {
      for (DType from : kFloats) {
        const Tensor x = random(from, {40000}, 1), y = random(to, {40000}, 2);
        std::vector<double> expected = values(y);
        const std::vector<double> added = values(x);
        for (size_t i = 0; i < expected.size(); ++i) expected[i] += added[i];
        Rig(3).run([&](const Context& ctx) {
          // Rows run also where the doors would only measure; adding twice would show.
          if (!ctx.measuring()) row.add_to(ctx, x, y);
        });
        expect_near(y, expected, epsilon(to), "add_to");
      }
      const Tensor x = random(to, {1000}, 3), y = random(to, {1000}, 4);
      std::vector<double> expected = values(x);
      const std::vector<double> added = values(y);
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += added[i];
      Rig(2).run([&](const Context& ctx) {
        if (!ctx.measuring()) row.add(ctx, x, y, x);  // in place
      });
      expect_near(x, expected, epsilon(to), "add");
    }
  });
}

TEST(Pointwise, SumsDoNotDependOnThreads) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (DType dtype : kFloats) {
      for (int64_t n : {1, 63, 100003}) {
        const Tensor x = random(dtype, {n}, 1);
        double squares = 0, plain = 0;
        for (double v : values(x)) {
          squares += v * v;
          plain += v;
        }
        std::vector<double> got_squares, got_sums;
        for (int threads : {1, 4}) {
          Rig(threads).run([&](const Context& ctx) {
            got_squares.push_back(row.sum_of_squares(ctx, x));
            got_sums.push_back(row.sum(ctx, x));
          });
        }
        EXPECT_NEAR(got_squares[0], squares, 1e-12 * squares);
        EXPECT_NEAR(got_sums[0], plain, 1e-12 * squares);
        EXPECT_THAT(got_squares, ::testing::Each(got_squares[0]));
        EXPECT_THAT(got_sums, ::testing::Each(got_sums[0]));
      }
    }
  });
}

TEST(Pointwise, FindsTheFirstNonFinite) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (DType dtype : kFloats) {
      const Tensor x = random(dtype, {50021}, 1);
      const auto find = [&] {
        int64_t index = -2;
        Rig(3).run([&](const Context& ctx) { index = row.find_non_finite(ctx, x); });
        return index;
      };
      EXPECT_EQ(find(), -1);
      const auto put = [&](int64_t at, double value) {
        set(x.view().rows(at, 1), [=](int64_t) { return value; });
      };
      put(50020, std::nan(""));
      EXPECT_EQ(find(), 50020);
      put(31234, -std::numeric_limits<double>::infinity());
      EXPECT_EQ(find(), 31234);
      put(0, std::nan(""));
      EXPECT_EQ(find(), 0);
    }
  });
}

// Through the doors: empty tensors and measuring touch nothing.
TEST(Pointwise, DoorsOnEmptyTensors) {
  Rig(1).run([](const Context& ctx) {
    const Tensor none(DType::kF32, {0, 4});
    fill_zero(ctx, none);
    copy(ctx, none, none);
    add_to(ctx, none, none);
    add(ctx, none, none, none);
    EXPECT_EQ(sum(ctx, none), 0.0);
    EXPECT_EQ(sum_of_squares(ctx, none), 0.0);
    EXPECT_EQ(find_non_finite(ctx, none), -1);
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
