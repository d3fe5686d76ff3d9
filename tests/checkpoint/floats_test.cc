#include "checkpoint/huggingface/floats.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace longhaul::checkpoint::huggingface {
namespace {

template <class From, class To>
std::vector<To> converted(std::string_view from, const std::vector<From>& values, DType to) {
  const Tensor out(to, {static_cast<int64_t>(values.size())});
  convert(from, std::as_bytes(std::span(values)), out);
  const std::span<const To> results = out.span<To>();
  return {results.begin(), results.end()};
}

// The value that 16 bits stand for, of which `fraction_bits` are the fraction's.
double meaning(uint16_t bits, int fraction_bits) {
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const int exponents = 1 << (15 - fraction_bits);
  const int exponent = (bits & 0x7FFF) >> fraction_bits, bias = exponents / 2 - 1;
  const double sign = (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == exponents - 1) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  const double part = std::pow(2, -fraction_bits) * fraction;
  return sign *
         (exponent == 0 ? part * std::pow(2, 1 - bias) : (1 + part) * std::pow(2, exponent - bias));
}

TEST(Floats, EveryHalfIsAnF32) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  const std::vector<float> values = converted<uint16_t, float>("F16", all, DType::kF32);
  for (uint16_t bits : all) {
    const double expected = meaning(bits, 10);
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(values[bits])) << bits;
    } else {
      EXPECT_EQ(values[bits], expected) << bits;
      EXPECT_EQ(std::signbit(values[bits]), (bits & 0x8000) != 0) << bits;
    }
  }
}

// Of the two bf16 around a value the nearer one, or that with an even last digit.
uint16_t nearest_bf16(double value) {
  uint16_t below = 0;  // the largest whose magnitude is not above
  for (int bit = 14; bit >= 0; --bit) {
    const auto candidate = static_cast<uint16_t>(below | 1 << bit);
    const double magnitude = meaning(candidate, 7);
    if (magnitude <= std::abs(value)) below = candidate;
  }
  const auto above = static_cast<uint16_t>(below + 1);
  const double lower = meaning(below, 7);
  // Infinity counts as the number that would come next.
  const double upper = std::isinf(meaning(above, 7)) ? std::ldexp(1.0, 128) : meaning(above, 7);
  const double down = std::abs(value) - lower, up = upper - std::abs(value);
  const uint16_t rounded = down < up || (down == up && (below & 1) == 0) ? below : above;
  return static_cast<uint16_t>(rounded | (std::signbit(value) ? 0x8000 : 0));
}

// Not first to f32 and from there to bf16: 1 + 2^-8 + 2^-40 would come out as 1.
TEST(Floats, RoundF64ToBf16Once) {
  std::vector<double> values{0.0,
                             -0.0,
                             1.0,
                             1 + 0x1p-8,
                             1 + 0x1p-8 + 0x1p-40,
                             -1 - 0x1p-8 - 0x1p-40,
                             1 + 0x1.8p-7,
                             1 + 0x1.8p-7 - 0x1p-45,
                             1e-300,
                             -0x1p-134,
                             0x1p-134 + 0x1p-180,
                             0x1.8p-133,
                             0x1.fep127,
                             0x1.ffp127,
                             0x1.ffp127 - 0x1p80,
                             -0x1.fffffffp127,
                             1e300};
  std::mt19937_64 random(7);
  for (int i = 0; i < 20000; ++i) {
    const auto bf16_bits = static_cast<uint16_t>(random() % 0x7F00);
    // Half of the way to the next one, and next to that.
    const double half = 0.5 * (meaning(bf16_bits, 7) + meaning(bf16_bits + 1, 7));
    const double nudge = std::ldexp(half, -30 - static_cast<int>(random() % 20));
    const std::array<double, 3> cases{half, half + nudge, half - nudge};
    values.push_back((random() % 2 == 0 ? 1 : -1) * cases[random() % 3]);
  }
  const std::vector<bf16> rounded = converted<double, bf16>("F64", values, DType::kBF16);
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, &rounded[i], sizeof(bits));
    EXPECT_EQ(bits, nearest_bf16(values[i])) << i << ": " << values[i];
  }
  const std::vector<double> special{std::numeric_limits<double>::infinity(),
                                    -std::numeric_limits<double>::infinity(),
                                    std::numeric_limits<double>::quiet_NaN()};
  const std::vector<bf16> same = converted<double, bf16>("F64", special, DType::kBF16);
  EXPECT_EQ(static_cast<float>(same[0]), std::numeric_limits<float>::infinity());
  EXPECT_EQ(static_cast<float>(same[1]), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(static_cast<float>(same[2])));
}

TEST(Floats, KnowsItsTypesOnly) {
  EXPECT_EQ(float_bytes("F64"), 8);
  EXPECT_EQ(float_bytes("F32"), 4);
  EXPECT_EQ(float_bytes("BF16"), 2);
  EXPECT_EQ(float_bytes("F16"), 2);
  EXPECT_EQ(float_bytes("I32"), 0);
  EXPECT_EQ(float_bytes("F8_E4M3"), 0);
}

}  // namespace
}  // namespace longhaul::checkpoint::huggingface
