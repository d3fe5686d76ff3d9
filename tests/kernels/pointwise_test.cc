#include "kernels/pointwise.h"

#include <bit>
#include <limits>
#include <map>

#include "kernels/core/cuda_runtime.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr DType kFloats[] = {DType::kBF16, DType::kF32, DType::kF64};

// f(row) for every backend's one row: the CPU's on every instruction set, a device's once.
template <class F>
void for_each_pointwise(F f) {
  int tested = 0;
  const auto test = [&](const PointwiseKernel& row) {
    SCOPED_TRACE(std::string(row.name));
    test_device() = {.kind = row.device};
    f(row);
    test_device() = kCpu;
    ++tested;
  };
  for_each_instruction_set([&] {
    for (const PointwiseKernel& row : cpu_backend().pointwise) test(row);
  });
  if (cuda::device_count() > 0) {
    for (const PointwiseKernel& row : cuda_backend().pointwise) test(row);
  } else if (!cuda_backend().pointwise.empty()) {
    std::cout << "[  SKIPPED ] cuda: " << cuda::why_no_device() << "\n";
  }
  EXPECT_GT(tested, 0);
}

std::vector<int64_t> lengths(std::vector<int64_t> long_ones) {
  const std::vector<int64_t> short_ones = short_lengths();
  long_ones.insert(long_ones.end(), short_ones.begin(), short_ones.end());
  return long_ones;
}

TEST(Pointwise, FillZero) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (DType dtype : {DType::kBF16, DType::kF32, DType::kF64, DType::kI32, DType::kI64}) {
      const DeviceTensor x = poisoned(dtype, {3, 50000});
      Rig(3).run([&](const Context& ctx) { row.fill_zero(ctx, x); });
      const Tensor host = on_host(test_stream(), x);
      for (int64_t i = 0; i < x.view().bytes(); ++i) ASSERT_EQ(host.view().raw()[i], std::byte{0});
    }
  });
}

template <class Operand>
void expect_copy(const PointwiseKernel& row, DType from, DType to, const Shape& shape,
                 auto... gap) {
  SCOPED_TRACE(shape.to_string());
  Operand x(from, shape, gap...), y(to, shape, gap...);
  fill_random(x, 1);
  Rig(2).run([&](const Context& ctx) { row.copy(ctx, x, y); });
  // Rounding the exact value once; widening changes nothing.
  const std::vector<double> exact = values(x);
  const DeviceTensor expected(to, shape);
  set(expected, [&](int64_t i) { return exact[static_cast<size_t>(i)]; });
  EXPECT_EQ(values(y), values(expected));
  if constexpr (std::is_same_v<Operand, Gapped>) {
    EXPECT_TRUE(y.gaps_intact());
  }
}

TEST(Pointwise, CopyConvertsAnyPair) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (DType from : kFloats) {
      for (DType to : kFloats) {
        expect_copy<Gapped>(row, from, to, {37, 3, 20});
        expect_copy<DeviceTensor>(row, from, to, {3, 20011});
        for (int64_t n : short_lengths()) {
          for (int64_t gap : {Gapped::kGap, Gapped::kAlignedGap}) {
            expect_copy<Gapped>(row, from, to, {2, n}, gap);
          }
        }
      }
    }
  });
}

// Every f32 whose upper half is one of a few patterns, and whose lower half is at, next to or far
// from the tie; the expected value is found among the two neighbours by distance.
TEST(Pointwise, RoundsToNearestEven) {
  std::vector<float> inputs;
  for (uint32_t upper : {0x0000u, 0x0001u, 0x007fu, 0x3f80u, 0x3f81u, 0x7f7eu, 0x8000u, 0xbf81u}) {
    for (uint32_t lower : {0x0000u, 0x0001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      inputs.push_back(std::bit_cast<float>(upper << 16 | lower));
    }
  }
  const float infinity = std::numeric_limits<float>::infinity();
  for (float special : {infinity, -infinity, std::numeric_limits<float>::max(),
                        std::numeric_limits<float>::quiet_NaN(), std::bit_cast<float>(0x7f800001u),
                        std::bit_cast<float>(0xff80ffffu)}) {
    inputs.push_back(special);
  }
  const auto expected = [](float value) -> float {
    const uint32_t bits = std::bit_cast<uint32_t>(value) & 0xffff0000u;
    const float toward_zero = std::bit_cast<float>(bits);
    const float away = std::bit_cast<float>(bits + 0x10000u);
    if (!std::isfinite(value)) return value;
    // Beyond the largest number, the next one stands for infinity.
    const double exact = value, low = toward_zero;
    const double high =
        std::isfinite(away) ? static_cast<double>(away) : std::copysign(0x1p128, exact);
    const double to_low = std::abs(exact - low), to_high = std::abs(high - exact);
    if (to_low != to_high) return to_low < to_high ? toward_zero : away;
    return (bits & 0x10000u) == 0 ? toward_zero : away;
  };
  const auto n = static_cast<int64_t>(inputs.size());
  for_each_pointwise([&](const PointwiseKernel& row) {
    const DeviceTensor x(DType::kF32, {n}), y(DType::kBF16, {n});
    const Tensor host(DType::kF32, {n});
    std::copy(inputs.begin(), inputs.end(), host.span<float>().begin());
    upload(test_stream(), host, x);
    Rig(1).run([&](const Context& ctx) { row.copy(ctx, x, y); });
    const Tensor results = on_host(test_stream(), y);
    for (size_t i = 0; i < inputs.size(); ++i) {
      const float got = results.span<bf16>()[i], want = expected(inputs[i]);
      if (std::isnan(want)) {
        EXPECT_TRUE(std::isnan(got)) << i;
      } else {
        EXPECT_EQ(std::bit_cast<uint32_t>(got), std::bit_cast<uint32_t>(want)) << i;
      }
    }
  });
}

TEST(Pointwise, AddToAndAdd) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (int64_t n : lengths({40000})) {
      for (DType to : kFloats) {
        for (DType from : kFloats) {
          const DeviceTensor x = random(from, {n}, 1), y = random(to, {n}, 2);
          std::vector<double> expected = values(y);
          const std::vector<double> added = values(x);
          for (size_t i = 0; i < expected.size(); ++i) expected[i] += added[i];
          Rig(3).run([&](const Context& ctx) {
            // Rows run also where the doors would only measure; adding twice would show.
            if (!ctx.measuring()) row.add_to(ctx, x, y);
          });
          expect_near(y, expected, epsilon(to), "add_to");
        }
        const DeviceTensor x = random(to, {n}, 3), y = random(to, {n}, 4);
        std::vector<double> expected = values(x);
        const std::vector<double> added = values(y);
        for (size_t i = 0; i < expected.size(); ++i) expected[i] += added[i];
        Rig(2).run([&](const Context& ctx) {
          if (!ctx.measuring()) row.add(ctx, x, y, x);  // in place
        });
        expect_near(x, expected, epsilon(to), "add");
      }
    }
  });
}

TEST(Pointwise, SumsDoNotDependOnThreads) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (DType dtype : kFloats) {
      for (int64_t n : lengths({63, 100003})) {
        const DeviceTensor x = random(dtype, {n}, 1);
        double squares = 0, plain = 0;
        for (double v : values(x)) {
          squares += v * v;
          plain += v;
        }
        std::vector<double> got_squares, got_sums;
        for (int threads : {1, 4}) {
          Rig(threads).run([&](const Context& ctx) {
            const double of_squares = row.sum_of_squares(ctx, x), of_all = row.sum(ctx, x);
            if (ctx.measuring()) return;
            got_squares.push_back(of_squares);
            got_sums.push_back(of_all);
          });
        }
        EXPECT_NEAR(got_squares[0], squares, 1e-12 * squares);
        EXPECT_NEAR(got_sums[0], plain, 1e-12 * squares + 1e-15);
        EXPECT_THAT(got_squares, ::testing::Each(got_squares[0]));
        EXPECT_THAT(got_sums, ::testing::Each(got_sums[0]));
      }
    }
  });
}

// The order depends on the length alone: on the CPU not on the vectors' length, on devices not on
// where the elements lie.
TEST(Pointwise, SumsDoNotDependOnTheInstructionSet) {
  for (DType dtype : kFloats) {
    std::map<DeviceKind, std::vector<double>> sums;
    for_each_pointwise([&](const PointwiseKernel& row) {
      const DeviceTensor x = random(dtype, {100003}, 1);
      for (int64_t shift : {0, 1}) {
        const DeviceTensor memory = poisoned(dtype, {100004});
        const TensorView moved = memory.view().rows(shift, 100003);
        const std::vector<double> list = values(x);
        set(moved, [&](int64_t i) { return list[static_cast<size_t>(i)]; });
        Rig(2).run([&](const Context& ctx) {
          const double sum = row.sum(ctx, moved);
          if (!ctx.measuring()) sums[row.device].push_back(sum);
        });
      }
    });
    for (const auto& [device, of_device] : sums) {
      EXPECT_THAT(of_device, ::testing::Each(of_device[0]));
    }
  }
}

TEST(Pointwise, FindsTheFirstNonFinite) {
  for_each_pointwise([](const PointwiseKernel& row) {
    for (DType dtype : kFloats) {
      const auto find = [&](const DeviceTensor& x) {
        int64_t index = -2;
        Rig(3).run([&](const Context& ctx) { index = row.find_non_finite(ctx, x); });
        return index;
      };
      const auto put = [](const DeviceTensor& x, int64_t at, double value) {
        set(x.view().rows(at, 1), [=](int64_t) { return value; });
      };
      const DeviceTensor x = random(dtype, {50021}, 1);
      EXPECT_EQ(find(x), -1);
      put(x, 50020, std::nan(""));
      EXPECT_EQ(find(x), 50020);
      put(x, 31234, -std::numeric_limits<double>::infinity());
      EXPECT_EQ(find(x), 31234);
      put(x, 0, std::nan(""));
      EXPECT_EQ(find(x), 0);
      for (int64_t n : short_lengths()) {
        const DeviceTensor y = random(dtype, {n}, 2);
        // The largest numbers are finite, and so is their sum's search.
        set(y, [&](int64_t i) {
          return (i % 2 == 0 ? 1 : -1) * (dtype == DType::kF64 ? 1e308 : 3e38);
        });
        EXPECT_EQ(find(y), -1) << n;
        put(y, n - 1, std::numeric_limits<double>::infinity());
        EXPECT_EQ(find(y), n - 1);
      }
    }
  });
}

// Through the doors: empty tensors and measuring touch nothing.
TEST(Pointwise, DoorsOnEmptyTensors) {
  Rig(1).run([](const Context& ctx) {
    const DeviceTensor none(DType::kF32, {0, 4});
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
