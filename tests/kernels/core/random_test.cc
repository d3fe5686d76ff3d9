#include "kernels/core/random.h"

#include <cmath>
#include <set>

#include "gtest/gtest.h"

namespace longhaul {
namespace {

// Known-answer vectors of Philox4x32-10, from the authors' Random123 (kat_vectors).
TEST(Random, PhiloxKnownAnswers) {
  EXPECT_EQ(random_bits({.seed = 0, .stream = 0}, 0),
            (std::array<uint32_t, 4>{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  constexpr uint64_t kOnes = ~uint64_t{0};
  EXPECT_EQ(random_bits({.seed = kOnes, .stream = kOnes}, kOnes),
            (std::array<uint32_t, 4>{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  // Counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: digits of pi.
  EXPECT_EQ(random_bits({.seed = 0x299f31d0a4093822u, .stream = 0x0370734413198a2eu},
                        0x85a308d3243f6a88u),
            (std::array<uint32_t, 4>{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u}));
}

TEST(Random, UniformFillsTheUnitInterval) {
  constexpr int kDraws = 20000;
  double sum = 0, squares = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = random_uniform({.seed = 3, .stream = 4}, i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  // Mean 1/2 and second moment 1/3, to 5 standard errors.
  EXPECT_NEAR(sum / kDraws, 0.5, 5 * std::sqrt(1.0 / 12 / kDraws));
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 5 * std::sqrt(4.0 / 45 / kDraws));
}

TEST(Random, NormalHasUnitVariance) {
  constexpr int kDraws = 20000;
  double sum = 0, squares = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double x = random_normal({.seed = 5, .stream = 6}, i);
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0.0, 5 / std::sqrt(kDraws));
  EXPECT_NEAR(squares / kDraws, 1.0, 5 * std::sqrt(2.0 / kDraws));
}

TEST(Random, StreamsAndSeedsDiffer) {
  std::set<uint64_t> seen;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (const char* name : {"a.weight", "b.weight", ""}) {
      for (uint64_t i = 0; i < 8; ++i) {
        seen.insert(random_u64({.seed = seed, .stream = stream_of(name)}, i));
      }
    }
  }
  EXPECT_EQ(seen.size(), 4u * 3u * 8u);
}

}  // namespace
}  // namespace longhaul
