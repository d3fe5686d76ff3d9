// The band mask against counting by hand: a matrix of booleans, filled from the definition.
#include "kernels/segment.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/random.h"

namespace longhaul {
namespace {

// The definition in other words: key j lies at a distance from query i that the band allows.
bool visible(const Segment& s, int64_t i, int64_t j) {
  const int64_t distance = j - i;
  return !(distance < s.band_lo) && !(distance > s.band_hi);
}

std::vector<Segment> samples() {
  std::vector<Segment> result;
  auto draw = [n = uint64_t{0}](int64_t lo, int64_t hi) mutable {
    return lo + static_cast<int64_t>(random_u64({.seed = 11, .stream = 0}, n++) %
                                     static_cast<uint64_t>(hi - lo + 1));
  };
  for (int n = 0; n < 300; ++n) {
    Segment s{.q_len = draw(0, 12), .k_len = draw(0, 12), .band_lo = draw(-15, 15)};
    s.band_hi = s.band_lo + draw(-2, 20);
    if (n % 7 == 0) s.band_lo = -kBandOpen;
    if (n % 11 == 0) s.band_hi = kBandOpen;
    result.push_back(s);
  }
  return result;
}

TEST(Segment, SeesAndArea) {
  for (const Segment& s : samples()) {
    int64_t count = 0;
    for (int64_t i = 0; i < s.q_len; ++i) {
      for (int64_t j = 0; j < s.k_len; ++j) {
        EXPECT_EQ(sees(s, i, j), visible(s, i, j));
        count += visible(s, i, j);
      }
    }
    EXPECT_EQ(area(s), count) << s.q_len << " x " << s.k_len << " band " << s.band_lo << " to "
                              << s.band_hi;
  }
}

// Ranges hold every visible pair, and with a band that is not empty nothing can be cut off them.
TEST(Segment, RangesAreTight) {
  for (const Segment& s : samples()) {
    for (int64_t a = 0; a < s.q_len; ++a) {
      for (int64_t b = a + 1; b <= s.q_len; ++b) {
        const IndexRange range = keys_seen(s, a, b);
        for (int64_t j = 0; j < s.k_len; ++j) {
          bool any = false;
          for (int64_t i = a; i < b; ++i) any |= visible(s, i, j);
          const bool inside = j >= range.begin && j < range.end;
          if (s.band_lo <= s.band_hi) {
            EXPECT_EQ(inside, any);
          } else {
            EXPECT_TRUE(inside || !any);
          }
        }
      }
    }
    for (int64_t a = 0; a < s.k_len; ++a) {
      for (int64_t b = a + 1; b <= s.k_len; ++b) {
        const IndexRange range = queries_seeing(s, a, b);
        for (int64_t i = 0; i < s.q_len; ++i) {
          bool any = false;
          for (int64_t j = a; j < b; ++j) any |= visible(s, i, j);
          const bool inside = i >= range.begin && i < range.end;
          if (s.band_lo <= s.band_hi) {
            EXPECT_EQ(inside, any);
          } else {
            EXPECT_TRUE(inside || !any);
          }
        }
      }
    }
  }
}

TEST(Segment, ClassifyNeverErrs) {
  int full = 0, partial = 0, empty = 0;
  for (const Segment& s : samples()) {
    for (int64_t i0 = 0; i0 < s.q_len; i0 += 3) {
      for (int64_t j0 = 0; j0 < s.k_len; j0 += 4) {
        const int64_t i1 = std::min(i0 + 3, s.q_len), j1 = std::min(j0 + 4, s.k_len);
        int64_t count = 0;
        for (int64_t i = i0; i < i1; ++i) {
          for (int64_t j = j0; j < j1; ++j) count += visible(s, i, j);
        }
        switch (classify(s, i0, i1, j0, j1)) {
          case TileMask::kEmpty:
            EXPECT_EQ(count, 0);
            ++empty;
            break;
          case TileMask::kFull:
            EXPECT_EQ(count, (i1 - i0) * (j1 - j0));
            ++full;
            break;
          case TileMask::kPartial:
            ++partial;
            break;
        }
        // A tile that needs no test is never given one, or the fast path would not be used.
        if (count == (i1 - i0) * (j1 - j0)) {
          EXPECT_EQ(classify(s, i0, i1, j0, j1), TileMask::kFull);
        }
      }
    }
  }
  EXPECT_GT(full, 0);
  EXPECT_GT(partial, 0);
  EXPECT_GT(empty, 0);
}

// Against direct sums of exponentials.
TEST(Segment, MergeFactors) {
  constexpr double kNothing = -std::numeric_limits<double>::infinity();
  for (double a : {-3.0, 0.5, 700.0, kNothing}) {
    for (double b : {-1.0, 0.5, 702.0, kNothing}) {
      const auto f = merge_factors(a, b);
      const long double ea = std::exp(static_cast<long double>(a));
      const long double eb = std::exp(static_cast<long double>(b));
      if (a == kNothing && b == kNothing) {
        EXPECT_EQ(f.lse, kNothing);
        EXPECT_EQ(f.first, 0.0);
        EXPECT_EQ(f.second, 0.0);
        continue;
      }
      EXPECT_NEAR(f.lse, static_cast<double>(std::log(ea + eb)), 1e-12);
      EXPECT_NEAR(f.first, static_cast<double>(ea / (ea + eb)), 1e-12);
      EXPECT_NEAR(f.second, static_cast<double>(eb / (ea + eb)), 1e-12);
    }
  }
}

}  // namespace
}  // namespace longhaul
