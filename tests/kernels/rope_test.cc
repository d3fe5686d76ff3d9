#include "kernels/rope.h"

#include <complex>
#include <numbers>

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

// Angle of dimension d at a position, in extended precision and with plain powers.
long double angle(int64_t position, int64_t d, int64_t head_dim, long double theta) {
  return static_cast<long double>(position) /
         std::pow(theta, 2.0L * static_cast<long double>(d) / static_cast<long double>(head_dim));
}

TEST(Rope, TableIsExactFarOut) {
  const std::vector<int64_t> positions{0, 1, 4095, 1'000'003, 16'000'000};
  const DeviceTensor cos(DType::kF64, {5, 32}), sin(DType::kF64, {5, 32});
  rope_table(test_stream(), {.theta = 500000.0}, positions, 64, cos, sin);
  const DeviceTensor cos32(DType::kF32, {5, 32}), sin32(DType::kF32, {5, 32});
  rope_table(test_stream(), {.theta = 500000.0}, positions, 64, cos32, sin32);
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t d = 0; d < 32; ++d) {
      const long double a = angle(positions[t], static_cast<int64_t>(d), 64, 500000.0L);
      // The frequency's rounding, times the position.
      const double bound = 4e-16 * static_cast<double>(positions[t]) + 1e-15;
      EXPECT_NEAR(cos.span<double>()[t * 32 + d], static_cast<double>(std::cos(a)), bound);
      EXPECT_NEAR(sin.span<double>()[t * 32 + d], static_cast<double>(std::sin(a)), bound);
      EXPECT_NEAR(cos32.span<float>()[t * 32 + d], static_cast<double>(std::cos(a)),
                  bound + epsilon(DType::kF32));
      EXPECT_NEAR(sin32.span<float>()[t * 32 + d], static_cast<double>(std::sin(a)),
                  bound + epsilon(DType::kF32));
    }
  }
}

// Runs of positions, as a rank with stripes or packed documents has them.
TEST(Rope, TableOfAnyOrderOfPositions) {
  std::vector<int64_t> positions;
  for (int64_t t = 0; t < 700; ++t) positions.push_back(3 * t);
  for (int64_t t = 700; t-- > 0;) positions.push_back(1'000'000 + 255 * t);
  for (int64_t t = 0; t < 300; ++t) positions.push_back(t);
  const auto count = static_cast<int64_t>(positions.size());
  const DeviceTensor cos(DType::kF64, {count, 3}), sin(DType::kF64, {count, 3});
  rope_table(test_stream(), {}, positions, 6, cos, sin);
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t d = 0; d < 3; ++d) {
      const long double a = angle(positions[t], static_cast<int64_t>(d), 6, 10000.0L);
      const double bound = 4e-16 * static_cast<double>(positions[t]) + 1e-15;
      ASSERT_NEAR(cos.span<double>()[t * 3 + d], static_cast<double>(std::cos(a)), bound);
      ASSERT_NEAR(sin.span<double>()[t * 3 + d], static_cast<double>(std::sin(a)), bound);
    }
  }
}

// The angle at position 1 is the frequency; the length of (cos, sin), the amplitude.
std::vector<std::pair<double, double>> turns(const RopeOptions& options, int64_t dim) {
  const DeviceTensor cos(DType::kF64, {1, dim / 2}), sin(DType::kF64, {1, dim / 2});
  rope_table(test_stream(), options, std::vector<int64_t>{1}, dim, cos, sin);
  std::vector<std::pair<double, double>> result;
  for (int64_t d = 0; d < dim / 2; ++d) {
    const double c = values(cos)[static_cast<size_t>(d)], s = values(sin)[static_cast<size_t>(d)];
    result.emplace_back(std::atan2(s, c), std::hypot(c, s));
  }
  return result;
}

TEST(Rope, LinearScaling) {
  const auto plain = turns({}, 32);
  const auto scaled =
      turns({.scaling = RopeScaling{.kind = RopeScalingKind::kLinear, .factor = 4}}, 32);
  for (size_t d = 0; d < plain.size(); ++d) {
    EXPECT_NEAR(scaled[d].first, plain[d].first / 4, 1e-15);
    EXPECT_NEAR(scaled[d].second, 1.0, 1e-15);
  }
}

// The base (theta * ((factor * length / original) - (factor - 1)) ^ (dim / (dim - 2))) of
// _compute_dynamic_ntk_parameters, and what it is for: the slowest frequency turns as far over the
// longer sample as with linear interpolation, the fastest hardly changes.
TEST(Rope, DynamicScaling) {
  RopeOptions options{.scaling = RopeScaling{
                          .kind = RopeScalingKind::kDynamic, .factor = 1, .original_length = 100}};
  options.length = 80;
  EXPECT_EQ(turns(options, 16), turns({}, 16)) << "no longer than the original";
  options.length = 400;
  const auto plain = turns({}, 16), scaled = turns(options, 16);
  for (size_t d = 0; d < plain.size(); ++d) {
    const double base = 10000.0 * std::pow(4.0, 16.0 / 14.0);
    EXPECT_NEAR(scaled[d].first, 1 / std::pow(base, static_cast<double>(d) / 8), 1e-15);
  }
  EXPECT_NEAR(scaled.back().first, plain.back().first / 4, 1e-12);
  EXPECT_EQ(scaled.front().first, plain.front().first);
}

// Section 3.2 of the paper, by wavelengths: r(d) = original / wavelength turns are alpha at the
// blend's slow end and beta at its fast one; without rounding to whole dimensions.
TEST(Rope, YarnScaling) {
  constexpr double kFactor = 8, kOriginal = 2048, kSlow = 1, kFast = 32, kBase = 10000;
  RopeScaling yarn{.kind = RopeScalingKind::kYarn, .factor = kFactor, .original_length = 2048};
  yarn.truncate = false;
  const auto scaled = turns({.theta = kBase, .scaling = yarn}, 64);
  const auto dimension = [&](double rotations) {  // where original / wavelength is so much
    return 32 * std::log(kOriginal / (2 * std::numbers::pi * rotations)) / std::log(kBase);
  };
  int kept = 0, divided = 0;
  for (size_t d = 0; d < scaled.size(); ++d) {
    const double frequency = std::pow(kBase, -static_cast<double>(d) / 32);
    const double at = static_cast<double>(d);
    const double blend = (at - dimension(kFast)) / (dimension(kSlow) - dimension(kFast));
    double expected = frequency * (1 - blend) + frequency / kFactor * blend;
    if (blend <= 0) expected = frequency, ++kept;
    if (blend >= 1) expected = frequency / kFactor, ++divided;
    EXPECT_NEAR(scaled[d].first, expected, 1e-14) << d;
    EXPECT_NEAR(scaled[d].second, 0.1 * std::log(kFactor) + 1, 1e-14);
  }
  EXPECT_GT(kept, 4);
  EXPECT_GT(divided, 4);
  yarn.attention_factor = 1.5;
  EXPECT_NEAR(turns({.scaling = yarn}, 8)[0].second, 1.5, 1e-14);
  yarn.attention_factor = 0;
  yarn.mscale = 2;
  yarn.mscale_all_dim = 1;
  EXPECT_NEAR(turns({.scaling = yarn}, 8)[0].second,
              (0.2 * std::log(kFactor) + 1) / (0.1 * std::log(kFactor) + 1), 1e-14);
}

// Hugging Face's _compute_llama3_parameters, in its own terms: wavelengths.
TEST(Rope, Llama3Scaling) {
  const RopeScaling scaling{.factor = 32.0,
                            .low_frequency_factor = 1.0,
                            .high_frequency_factor = 4.0,
                            .original_length = 8192};
  const DeviceTensor cos(DType::kF64, {1, 32}), sin(DType::kF64, {1, 32});
  rope_table(test_stream(), {.theta = 500000.0, .scaling = scaling}, std::vector<int64_t>{1}, 64,
             cos, sin);
  const double low_wavelength = 8192.0 / 1.0, high_wavelength = 8192.0 / 4.0;
  int slow = 0, fast = 0, between = 0;
  for (size_t d = 0; d < 32; ++d) {
    const double inverse = 1.0 / std::pow(500000.0, 2.0 * static_cast<double>(d) / 64.0);
    const double wavelength = 2 * std::numbers::pi / inverse;
    double expected = inverse;
    if (wavelength > low_wavelength) {
      expected = inverse / 32.0;
      ++slow;
    } else if (wavelength >= high_wavelength) {
      const double smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
      expected = (1 - smooth) * inverse / 32.0 + smooth * inverse;
      ++between;
    } else {
      ++fast;
    }
    // At position 1 the angle is the frequency.
    EXPECT_NEAR(std::atan2(sin.span<double>()[d], cos.span<double>()[d]), expected, 1e-15);
  }
  EXPECT_GT(slow, 0);
  EXPECT_GT(between, 0);
  EXPECT_GT(fast, 0);
}

// A pair (x[d], x[d + D/2]) is a complex number, turned by the angle.
void expect_rotated(const RopeKernel& row, int64_t count, int64_t heads, int64_t dim, bool inverse,
                    int64_t gap = Gapped::kGap) {
  SCOPED_TRACE(::testing::Message() << count << " x " << heads << " x " << dim);
  const DType acc = accumulator(row.dtype);
  Rig rig(3);
  std::vector<int64_t> positions;
  for (int64_t t = 0; t < count; ++t) positions.push_back(t * t);
  const DeviceTensor cos(acc, {count, dim / 2}), sin(acc, {count, dim / 2});
  rope_table(test_stream(), {}, positions, dim, cos, sin);
  Gapped x(row.dtype, {count, heads, dim}, gap);
  fill_random(x, 1);
  std::vector<double> expected = values(x);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t d = 0; d < dim / 2; ++d) {
        const auto a = static_cast<size_t>((t * heads + h) * dim + d);
        const auto b = a + static_cast<size_t>(dim / 2);
        const auto turn = static_cast<double>(angle(t * t, d, dim, 10000.0L));
        const std::complex<double> z =
            std::complex(expected[a], expected[b]) * std::polar(1.0, inverse ? -turn : turn);
        expected[a] = z.real();
        expected[b] = z.imag();
      }
    }
  }
  rig.run([&](const Context& ctx) {
    row.run(ctx, {.cos = cos, .sin = sin, .inverse = inverse, .x = x});
  });
  expect_near(x, expected, 4 * epsilon(acc) + epsilon(row.dtype) + 1e-12, "x");
  EXPECT_TRUE(x.gaps_intact());
}

TEST(Rope, RotatesPairs) {
  for_each_row_and_instruction_set(&Backend::rope, [](const RopeKernel& row) {
    for (bool inverse : {false, true}) {
      expect_rotated(row, 0, 2, 8, inverse);
      expect_rotated(row, 75, 3, 40, inverse);
      for (int64_t half : short_lengths()) expect_rotated(row, 3, 2, 2 * half, inverse);
      for (int64_t half : {8, 16, 24}) {
        expect_rotated(row, 3, 7, 2 * half, inverse, Gapped::kAlignedGap);
      }
    }
  });
}

// Scores depend on the distance of two positions only.
TEST(Rope, ScoresDependOnDistance) {
  for_each_row(&Backend::rope, [](const RopeKernel& row) {
    if (row.dtype != DType::kF64) return;
    Rig rig(1);
    const auto score = [&](int64_t q_position, int64_t k_position) {
      const DeviceTensor cos(DType::kF64, {2, 32}), sin(DType::kF64, {2, 32});
      rope_table(test_stream(), {}, std::vector<int64_t>{q_position, k_position}, 64, cos, sin);
      const DeviceTensor x = random(DType::kF64, {2, 1, 64}, 8);
      rig.run([&](const Context& ctx) { row.run(ctx, {.cos = cos, .sin = sin, .x = x}); });
      double sum = 0;
      const std::vector<double> turned = values(x);
      for (size_t d = 0; d < 64; ++d) sum += turned[d] * turned[64 + d];
      return sum;
    };
    EXPECT_NEAR(score(17, 5), score(1'000'017, 1'000'005), 1e-8);
    EXPECT_GT(std::abs(score(17, 5) - score(17, 6)), 1e-3);
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
