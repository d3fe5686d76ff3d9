#include "parallel/layout/token_layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "kernels/core/error.h"

namespace longhaul::parallel {
namespace {

// Chunk borders from the definition: tokens dealt to chunks one at a time.
std::vector<int64_t> chunk_begins(int64_t tokens, int64_t chunks) {
  std::vector<int64_t> sizes(static_cast<size_t>(chunks), 0), begins{0};
  for (int64_t i = 0; i < tokens; ++i) ++sizes[static_cast<size_t>(i % chunks)];
  for (int64_t size : sizes) begins.push_back(begins.back() + size);
  return begins;
}

class EveryLayout : public testing::TestWithParam<LayoutKind> {};

TEST_P(EveryLayout, IsABijection) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (int64_t tokens : {0, 1, 2, 3, 7, 8, 9, 17, 18, 19, 61, 127, 128}) {
      const TokenLayout layout = GetParam().make(tokens, ranks);
      ASSERT_EQ(layout.tokens(), tokens);
      ASSERT_EQ(layout.ranks(), ranks);
      std::vector<int> owners(static_cast<size_t>(tokens), 0);
      int64_t least = tokens, most = 0;
      for (int r = 0; r < ranks; ++r) {
        const std::vector<int64_t> positions = layout.positions(r);
        ASSERT_EQ(static_cast<int64_t>(positions.size()), layout.rows(r));
        least = std::min(least, layout.rows(r));
        most = std::max(most, layout.rows(r));
        // Every rank has equally many runs, so that scans have equally many maps.
        ASSERT_EQ(layout.runs(r).size(), layout.runs(0).size());
        ASSERT_TRUE(std::is_sorted(positions.begin(), positions.end()));
        for (int64_t row = 0; row < layout.rows(r); ++row) {
          const int64_t p = positions[static_cast<size_t>(row)];
          ASSERT_EQ(layout.position(r, row), p);
          ASSERT_EQ(layout.locate(p), (TokenLayout::Place{r, row}));
          ++owners[static_cast<size_t>(p)];
        }
      }
      ASSERT_TRUE(std::all_of(owners.begin(), owners.end(), [](int n) { return n == 1; }));
      ASSERT_LE(most - least, 1) << "ranks " << ranks << " tokens " << tokens;
      ASSERT_EQ(layout.most_rows(), most);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, EveryLayout,
                         testing::ValuesIn(layout_kinds().begin(), layout_kinds().end()),
                         [](const testing::TestParamInfo<LayoutKind>& kind) {
                           return std::string(kind.param.name);
                         });

TEST(TokenLayout, ContiguousFollowsTheChunks) {
  const std::vector<int64_t> begins = chunk_begins(11, 4);
  const TokenLayout layout = TokenLayout::contiguous(11, 4);
  for (int r = 0; r < 4; ++r) {
    const auto i = static_cast<size_t>(r);
    EXPECT_EQ(layout.runs(r), (RunList{{begins[i], begins[i + 1] - begins[i], 1}}));
  }
}

TEST(TokenLayout, ZigzagPairsEarlyAndLateChunks) {
  const std::vector<int64_t> begins = chunk_begins(23, 6);
  const TokenLayout layout = TokenLayout::zigzag(23, 3);
  for (int r = 0; r < 3; ++r) {
    const auto i = static_cast<size_t>(r), j = static_cast<size_t>(5 - r);
    EXPECT_EQ(layout.runs(r), (RunList{{begins[i], begins[i + 1] - begins[i], 1},
                                       {begins[j], begins[j + 1] - begins[j], 1}}));
  }
}

TEST(TokenLayout, StripedDealsTokensLikeCards) {
  const TokenLayout layout = TokenLayout::striped(8, 3);
  for (int64_t p = 0; p < 8; ++p) {
    EXPECT_EQ(layout.locate(p), (TokenLayout::Place{static_cast<int>(p % 3), p / 3}));
  }
}

TEST(TokenLayout, LongSequencesNeedNoListOfTokens) {
  const int64_t tokens = int64_t{1} << 50;
  for (const LayoutKind& kind : layout_kinds()) {
    const TokenLayout layout = kind.make(tokens + 3, 1000);
    for (int64_t p : {int64_t{0}, int64_t{12345678901}, tokens / 2, tokens + 2}) {
      const TokenLayout::Place place = layout.locate(p);
      EXPECT_EQ(layout.position(place.rank, place.row), p);
    }
  }
}

TEST(TokenLayout, AcceptsAnyBijectionAndNothingElse) {
  const TokenLayout layout(6, {{{4, 2, 1}, {0, 1, 7}}, {}, {{1, 3, 1}}});
  EXPECT_EQ(layout.locate(0), (TokenLayout::Place{0, 2}));
  EXPECT_EQ(layout.locate(3), (TokenLayout::Place{2, 2}));
  EXPECT_EQ(layout.rows(1), 0);

  EXPECT_THROW(TokenLayout(6, {{{0, 3, 1}}, {{4, 2, 1}}}), Error);  // 3 is missing
  EXPECT_THROW(TokenLayout(6, {{{0, 3, 1}}, {{2, 3, 1}}}), Error);  // 2 twice, 5 missing
  EXPECT_THROW(TokenLayout(6, {{{0, 3, 1}}, {{4, 3, 1}}}), Error);  // 6 is outside
  EXPECT_THROW(TokenLayout(6, {{{-1, 6, 1}}}), Error);
  EXPECT_THROW(TokenLayout(6, {{{0, 3, 2}}, {{1, 2, 2}}, {{3, 1, 1}}}), Error);  // 3 twice
  EXPECT_THROW(TokenLayout(6, {{{0, 3, 2}}, {{1, 3, 1}}}), Error);               // two strides
  EXPECT_THROW(TokenLayout(6, {{{0, 6, 0}}}), Error);
  EXPECT_THROW(TokenLayout(6, {}), Error);
  EXPECT_THROW(TokenLayout::contiguous(-1, 2), Error);
  EXPECT_THROW(layout.locate(6), Error);
  EXPECT_THROW(layout.position(1, 0), Error);
}

TEST(TokenLayout, SlicesKeepPositions) {
  const RunList runs{{10, 3, 1}, {50, 0, 1}, {20, 4, 1}};
  std::vector<int64_t> all;
  for (const auto& run : runs) {
    for (int64_t i = 0; i < run.length; ++i) all.push_back(run.position(i));
  }
  EXPECT_EQ(rows_of(runs), 7);
  for (int64_t row = 0; row <= 7; ++row) {
    for (int64_t length = 0; row + length <= 7; ++length) {
      std::vector<int64_t> got;
      for (const auto& run : slice(runs, row, length)) {
        for (int64_t i = 0; i < run.length; ++i) got.push_back(run.position(i));
      }
      EXPECT_EQ(got, std::vector<int64_t>(all.begin() + row, all.begin() + row + length));
    }
  }
  EXPECT_THROW(slice(runs, 5, 3), Error);
}

}  // namespace
}  // namespace longhaul::parallel
