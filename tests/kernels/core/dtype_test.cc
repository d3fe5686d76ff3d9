#include "kernels/core/dtype.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/core/random.h"

namespace longhaul {
namespace {

float widened(uint16_t bits) {
  const uint32_t u = uint32_t{bits} << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

TEST(BF16, EveryValueSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float f = widened(static_cast<uint16_t>(bits));
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(bf16(f))));
    } else {
      EXPECT_EQ(bf16(f).bits, bits);
    }
  }
}

// Between two neighbours the nearer one is taken, in the middle the even one.
TEST(BF16, RoundsToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7f7fu; ++bits) {
    const auto low = static_cast<uint16_t>(bits), high = static_cast<uint16_t>(bits + 1);
    const double a = widened(low), b = widened(high);
    const double middle = (a + b) / 2;
    EXPECT_EQ(bf16(static_cast<float>(middle)).bits, bits % 2 == 0 ? low : high);
    EXPECT_EQ(bf16(std::nextafter(static_cast<float>(middle), 0.0f)).bits, low);
    EXPECT_EQ(bf16(std::nextafter(static_cast<float>(middle), INFINITY)).bits, high);
  }
}

TEST(BF16, LargestOverflowsToInfinity) {
  EXPECT_EQ(static_cast<float>(bf16(std::numeric_limits<float>::max())), INFINITY);
  EXPECT_EQ(static_cast<float>(bf16(-INFINITY)), -INFINITY);
  // NaN payload only in the lower half must not become infinity.
  EXPECT_TRUE(std::isnan(static_cast<float>(bf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(DType, SizesAndAccumulators) {
  EXPECT_EQ(size_of(DType::kBF16), 2);
  EXPECT_EQ(size_of(DType::kI64), 8);
  EXPECT_EQ(accumulator(DType::kBF16), DType::kF32);
  EXPECT_EQ(accumulator(DType::kF32), DType::kF32);
  EXPECT_EQ(accumulator(DType::kF64), DType::kF64);
  EXPECT_EQ(name(DType::kBF16), "bf16");
  EXPECT_THROW(visit_float(DType::kI32, []<class T>() {}), Error);
}

}  // namespace
}  // namespace longhaul
