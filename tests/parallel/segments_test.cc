// cut_segments against the mask, pair by pair.
#include "parallel/layout/segments.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {
namespace {

std::vector<int64_t> positions(const RunList& runs) {
  std::vector<int64_t> result;
  for (const Run& run : runs) {
    for (int64_t i = 0; i < run.length; ++i) result.push_back(run.position(i));
  }
  return result;
}

// By counting borders between two tokens, unlike the code under test.
bool allowed(int64_t query, int64_t key, const Mask& mask, const std::vector<int64_t>& begins) {
  if (std::any_of(begins.begin(), begins.end(),
                  [&](int64_t border) { return (query < border) != (key < border); })) {
    return false;
  }
  // Of the prefix: fewer than `prefix` tokens lie between its document's first and it.
  int64_t before = 0;
  while (std::find(begins.begin(), begins.end(), key - before) == begins.end()) ++before;
  if (before < mask.prefix) return true;
  if (mask.causal && key > query) return false;
  return mask.window == 0 || key > query - mask.window;
}

// Every allowed pair in exactly one segment, positions right, segments trimmed and in order.
void expect_exact(const RunList& q, const RunList& k, const Documents& documents, const Mask& mask,
                  int64_t q_row, int64_t k_row) {
  const std::vector<int64_t> q_pos = positions(q), k_pos = positions(k);
  const std::vector<Segment> segments = cut_segments(q, k, documents, mask, q_row, k_row);
  std::vector<int> times(q_pos.size() * k_pos.size(), 0);
  int64_t last_row = q_row;
  for (const Segment& s : segments) {
    ASSERT_GE(s.q_row, last_row) << "rows fall";
    last_row = s.q_row;
    ASSERT_GE(s.k_row, k_row);
    ASSERT_LE(s.q_row + s.q_len, q_row + static_cast<int64_t>(q_pos.size()));
    ASSERT_LE(s.k_row + s.k_len, k_row + static_cast<int64_t>(k_pos.size()));
    ASSERT_GE(s.stride, 1);
    std::vector<bool> q_used(static_cast<size_t>(s.q_len)), k_used(static_cast<size_t>(s.k_len));
    int64_t pairs = 0;
    for (int64_t i = 0; i < s.q_len; ++i) {
      const auto qi = static_cast<size_t>(s.q_row - q_row + i);
      ASSERT_EQ(s.q_pos + i * s.stride, q_pos[qi]);
      for (int64_t j = 0; j < s.k_len; ++j) {
        const auto kj = static_cast<size_t>(s.k_row - k_row + j);
        ASSERT_EQ(s.k_pos + j * s.stride, k_pos[kj]);
        if (i + s.band_lo <= j && j <= i + s.band_hi) {
          ++times[qi * k_pos.size() + kj];
          ++pairs;
          q_used[static_cast<size_t>(i)] = k_used[static_cast<size_t>(j)] = true;
        }
      }
    }
    ASSERT_EQ(area(s), pairs);
    ASSERT_TRUE(std::all_of(q_used.begin(), q_used.end(), [](bool b) { return b; }));
    ASSERT_TRUE(std::all_of(k_used.begin(), k_used.end(), [](bool b) { return b; }));
  }
  for (size_t i = 0; i < q_pos.size(); ++i) {
    for (size_t j = 0; j < k_pos.size(); ++j) {
      ASSERT_EQ(times[i * k_pos.size() + j],
                allowed(q_pos[i], k_pos[j], mask, documents.begins()) ? 1 : 0)
          << "query at " << q_pos[i] << ", key at " << k_pos[j];
    }
  }
}

Documents random_documents(int64_t tokens, int64_t longest, std::mt19937_64& random) {
  std::vector<int64_t> begins;
  for (int64_t at = 0; at < tokens; at += 1 + static_cast<int64_t>(random() % longest)) {
    begins.push_back(at);
  }
  return Documents(tokens, begins);
}

constexpr Mask kMasks[] = {{true, 0},     {false, 0},    {true, 1},    {true, 2},    {true, 9},
                           {true, 100},   {false, 4},    {false, 1},   {true, 0, 1}, {true, 0, 5},
                           {true, 0, 99}, {true, 1, 3},  {true, 4, 6}, {true, 9, 2}, {false, 0, 4},
                           {false, 3, 5}, {false, 1, 1}, {true, 3, 99}};

// Nothing that a range of queries sees is out of its reach, and both ends of the reach are seen.
TEST(Segments, KeysInReachAreBetweenTheFirstAndTheLastSeen) {
  constexpr int64_t kTokens = 40;
  std::mt19937_64 random(5);
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  for (const Mask& mask :
       {Mask{true, 0}, Mask{false, 0}, Mask{true, 6}, Mask{false, 6}, Mask{true, 0, 4},
        Mask{true, 6, 4}, Mask{false, 6, 4}, Mask{true, 0, kMost}}) {
    const Documents documents = random_documents(kTokens, 15, random);
    for (int64_t first = 0; first < kTokens; ++first) {
      for (int64_t last = first; last < kTokens; ++last) {
        int64_t begin = kTokens, end = 0;
        for (int64_t key = 0; key < kTokens; ++key) {
          for (int64_t query = first; query <= last; ++query) {
            if (!allowed(query, key, mask, documents.begins())) continue;
            begin = std::min(begin, key);
            end = std::max(end, key + 1);
          }
        }
        const IndexRange reach = keys_in_reach(first, last, documents, mask);
        ASSERT_EQ(reach.begin, begin) << first << " to " << last;
        ASSERT_EQ(reach.end, end) << first << " to " << last;
      }
    }
  }
}

TEST(Segments, CoverTheMaskForEveryLayout) {
  std::mt19937_64 random(7);
  for (const LayoutKind& kind : layout_kinds()) {
    for (int ranks : {1, 2, 3, 5, 8}) {
      for (int64_t tokens : {0, 1, 4, 23, 37}) {
        for (int64_t longest : {int64_t{1000}, int64_t{12}, int64_t{3}, int64_t{1}}) {
          const Documents documents = random_documents(tokens, longest, random);
          for (const Mask& mask : kMasks) {
            const TokenLayout layout = kind.of_sample(documents, mask, ranks, {.row_price = 0});
            for (int a = 0; a < ranks; ++a) {
              for (int b = 0; b < ranks; ++b) {
                SCOPED_TRACE(absl::StrCat(std::string(kind.name), " ranks ", ranks, " tokens ",
                                          tokens, " causal ", mask.causal, " window ", mask.window,
                                          " prefix ", mask.prefix, " q of ", a, " k of ", b));
                ASSERT_NO_FATAL_FAILURE(
                    expect_exact(layout.runs(a), layout.runs(b), documents, mask, 3, 11));
              }
            }
          }
        }
      }
    }
  }
}

// All ranks' rows one after the other, and slices of them, as all-to-alls and tasks need.
TEST(Segments, CoverTheMaskForListsOfRuns) {
  std::mt19937_64 random(8);
  const auto draw = [&](int64_t limit) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(limit));
  };
  for (int round = 0; round < 300; ++round) {
    const LayoutKind& kind = layout_kinds()[static_cast<size_t>(draw(4))];
    const int ranks = static_cast<int>(1 + draw(6));
    const int64_t tokens = 1 + draw(40);
    const Documents documents = random_documents(tokens, 1 + draw(20), random);
    const TokenLayout layout = kind.of_sample(documents, {true, 0}, ranks, {.row_price = 0});
    RunList all;
    for (int r = 0; r < ranks; ++r) {
      for (const auto& run : layout.runs(r)) all.push_back(run);
    }
    const auto part = [&] {
      const int64_t begin = draw(tokens);
      return slice(all, begin, draw(tokens - begin + 1));
    };
    SCOPED_TRACE(absl::StrCat("round ", round));
    ASSERT_NO_FATAL_FAILURE(
        expect_exact(part(), part(), documents, kMasks[draw(std::size(kMasks))], 0, 0));
  }
}

TEST(Segments, AdjacentRunsAreJoined) {
  const Documents whole = Documents::whole(16);
  const TokenLayout layout = TokenLayout::zigzag(16, 2);
  // Rank 1's chunks are neighbours: one triangle, not two and a square.
  EXPECT_EQ(cut_segments(layout.runs(1), layout.runs(1), whole, {true, 0}).size(), 1u);
  EXPECT_EQ(cut_segments(layout.runs(0), layout.runs(0), whole, {true, 0}).size(), 3u);
}

// A square for the queries of the prefix and a trapezoid for the others; with a window, in which
// the prefix may be out of sight, a rectangle more.
TEST(Segments, PrefixIsCutIntoFewSegments) {
  const RunList all{{0, 16, 1}};
  const Documents whole = Documents::whole(16);
  const auto square_and_band = cut_segments(all, all, whole, {true, 0, 4});
  ASSERT_EQ(square_and_band.size(), 2u);
  EXPECT_EQ(area(square_and_band[0]), 4 * 4);
  EXPECT_EQ(area(square_and_band[1]), (16 * 17 - 4 * 5) / 2);
  EXPECT_EQ(cut_segments(all, all, whole, {true, 3, 4}).size(), 3u);
  EXPECT_EQ(cut_segments(all, all, whole, {true, 3, 16}).size(), 1u);
  EXPECT_EQ(cut_segments(all, all, whole, {true, 0, int64_t{1} << 60}).size(), 1u);
  EXPECT_EQ(cut_segments(all, all, Documents(16, {0, 8}), {true, 0, 3}).size(), 4u);
}

TEST(Segments, StripesAreTriangles) {
  const TokenLayout layout = TokenLayout::striped(12, 3);
  const Documents whole = Documents::whole(12);
  const auto below = cut_segments(layout.runs(2), layout.runs(1), whole, {true, 0});
  const auto above = cut_segments(layout.runs(1), layout.runs(2), whole, {true, 0});
  ASSERT_EQ(below.size(), 1u);
  ASSERT_EQ(above.size(), 1u);
  EXPECT_EQ(below[0].stride, 3);
  EXPECT_EQ(area(below[0]), 10);  // with the diagonal
  EXPECT_EQ(area(above[0]), 6);   // without
}

// As many segments as documents that overlap, and no list of tokens on the way.
TEST(Segments, LongPackedSamplesStaySmall) {
  const int64_t tokens = int64_t{1} << 40, each = int64_t{1} << 31;
  std::vector<int64_t> begins;
  for (int64_t at = 0; at < tokens; at += each) begins.push_back(at);
  const Documents documents(tokens, begins);
  const TokenLayout layout = TokenLayout::contiguous(tokens, 64);
  EXPECT_EQ(cut_segments(layout.runs(5), layout.runs(5), documents, {true, 0}).size(), 8u);
  EXPECT_TRUE(cut_segments(layout.runs(5), layout.runs(4), documents, {true, 0}).empty());
}

TEST(Segments, RefuseRunsOfTwoStrides) {
  EXPECT_THROW(cut_segments({{0, 2, 2}}, {{0, 4, 1}}, Documents::whole(8), {true, 0}), Error);
}

}  // namespace
}  // namespace longhaul::parallel
