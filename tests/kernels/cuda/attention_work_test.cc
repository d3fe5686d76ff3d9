// Lists of work for the CUDA attention kernels against the predicate of kernels/segment.h, element
// by element.
#include "kernels/cuda/attention_work.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/tables.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::cuda {
namespace {

namespace testing = longhaul::kernels::testing;

constexpr int64_t kQueries = 150, kKeys = 170, kTileRows = 32;

// Causal, window, open and empty bands, in tensors' middle and at their ends; rows of several
// segments overlap.
std::vector<Segment> segments() {
  return {{.q_row = 0, .q_len = 150, .k_row = 0, .k_len = 170, .band_lo = -kBandOpen, .band_hi = 0},
          {.q_row = 33, .q_len = 40, .k_row = 100, .k_len = 70, .band_lo = -5, .band_hi = 11},
          {.q_row = 0, .q_len = 0, .k_row = 0, .k_len = 0, .band_lo = 0, .band_hi = 0},
          {.q_row = 149,
           .q_len = 1,
           .k_row = 3,
           .k_len = 1,
           .band_lo = -kBandOpen,
           .band_hi = kBandOpen},
          {.q_row = 10, .q_len = 100, .k_row = 7, .k_len = 90, .band_lo = 60, .band_hi = kBandOpen},
          {.q_row = 64, .q_len = 64, .k_row = 64, .k_len = 64, .band_lo = -200, .band_hi = -100}};
}

// Whether any query of rows [q0, q1) sees any key of rows [k0, k1) of the tensors.
bool sees_any(const Segment& s, int64_t q0, int64_t q1, int64_t k0, int64_t k1) {
  for (int64_t i = std::max<int64_t>(0, q0 - s.q_row); i < std::min(s.q_len, q1 - s.q_row); ++i) {
    for (int64_t j = std::max<int64_t>(0, k0 - s.k_row); j < std::min(s.k_len, k1 - s.k_row); ++j) {
      if (sees(s, i, j)) return true;
    }
  }
  return false;
}

void expect_list(const AttentionWorkList& list, int64_t rows,
                 const std::function<bool(const Segment&, int64_t, int64_t)>& has_work) {
  std::vector<int> owners(static_cast<size_t>(rows));
  for (const AttentionTile& tile : list.tiles) {
    ASSERT_LT(tile.begin, tile.end);
    ASSERT_LE(tile.end, rows);
    EXPECT_LE(tile.end - tile.begin, kTileRows);
    for (int64_t r = tile.begin; r < tile.end; ++r) ++owners[static_cast<size_t>(r)];
    std::vector<int64_t> expected;
    for (size_t n = 0; n < list.segments.size(); ++n) {
      if (has_work(list.segments[n], tile.begin, tile.end)) {
        expected.push_back(static_cast<int64_t>(n));
      }
    }
    EXPECT_EQ(
        std::vector<int64_t>(list.visits.begin() + tile.first, list.visits.begin() + tile.last),
        expected);
  }
  for (int64_t r = 0; r < rows; ++r) {
    bool any = false;
    for (const Segment& s : list.segments) any = any || has_work(s, r, r + 1);
    const int owned = owners[static_cast<size_t>(r)];
    EXPECT_TRUE(owned == 1 || (owned == 0 && !any)) << r;
  }
}

TEST(AttentionWork, EveryRowHasOneTileWithItsSegmentsInOrder) {
  const std::vector<Segment> list = segments();
  expect_list(query_tiles(list, kQueries, kTileRows), kQueries,
              [](const Segment& s, int64_t begin, int64_t end) {
                return sees_any(s, begin, end, 0, kKeys);
              });
  expect_list(key_tiles(list, kKeys, kTileRows), kKeys,
              [](const Segment& s, int64_t begin, int64_t end) {
                return sees_any(s, 0, kQueries, begin, end);
              });
}

TEST(AttentionWork, NoSegments) {
  EXPECT_TRUE(query_tiles({}, kQueries, kTileRows).tiles.empty());
  EXPECT_TRUE(query_tiles({}, 0, kTileRows).tiles.empty());
}

TEST(AttentionWork, HeaviestFirst) {
  const Segment causal{
      .q_row = 0, .q_len = 150, .k_row = 0, .k_len = 150, .band_lo = -kBandOpen, .band_hi = 0};
  const std::vector<Segment> list{causal};
  const AttentionWorkList queries = query_tiles(list, kQueries, kTileRows);
  ASSERT_EQ(queries.tiles.size(), 5u);
  EXPECT_EQ(queries.tiles.front().begin, 128);
  EXPECT_EQ(queries.tiles.back().begin, 0);
  EXPECT_EQ(key_tiles(list, 150, kTileRows).tiles.front().begin, 0);
}

TEST(AttentionWork, BandsOfTiles) {
  for (const Segment& s : segments()) {
    for (int64_t i : {int64_t{-40}, int64_t{0}, int64_t{31}, int64_t{1} << 40}) {
      for (int64_t j : {int64_t{-3}, int64_t{0}, int64_t{64}, (int64_t{1} << 40) + 5}) {
        const TileBand by_queries = band_by_queries(s, i, j), by_keys = band_by_keys(s, i, j);
        for (int a = 0; a < 128; ++a) {
          for (int b = 0; b < 128; ++b) {
            const bool expected = sees(s, i + a, j + b);
            ASSERT_EQ(by_queries.sees(a, b), expected) << i << " " << j << " " << a << " " << b;
            ASSERT_EQ(by_keys.sees(b, a), expected) << i << " " << j << " " << a << " " << b;
          }
        }
      }
    }
  }
}

// What for_work sends to the device, part by part, against lists made here.
void expect_parts(std::span<const Segment> all, int64_t rows, size_t parts) {
  testing::Rig(1).run([&](const Context& ctx) {
    size_t begin = 0, calls = 0;
    for_work(ctx, query_tiles, all, rows, kTileRows, [&](const AttentionWork& work) {
      const size_t left = all.size() - begin;
      const size_t count = std::min(left, static_cast<size_t>(kMostSegmentsAtATime));
      const AttentionWorkList list = query_tiles(all.subspan(begin, count), rows, kTileRows);
      begin += count;
      ++calls;
      ASSERT_EQ(work.count, static_cast<int64_t>(list.tiles.size()));
      const auto expect_copy = [&]<class T>(const T* from, const std::vector<T>& expected) {
        const auto words = static_cast<int64_t>(expected.size() * sizeof(T) / sizeof(int64_t));
        const Tensor copy =
            on_host(ctx.stream, ConstTensorView(reinterpret_cast<const std::byte*>(from),
                                                DType::kI64, {words}, ctx.device()));
        EXPECT_EQ(std::memcmp(copy.view().raw(), expected.data(), expected.size() * sizeof(T)), 0);
      };
      expect_copy(work.segments, list.segments);
      expect_copy(work.tiles, list.tiles);
      expect_copy(work.visits, list.visits);
    });
    EXPECT_EQ(calls, ctx.measuring() ? 0 : parts);
    EXPECT_EQ(begin, ctx.measuring() ? 0 : all.size());
  });
}

TEST(AttentionWork, ArrivesOnTheDevice) {
  if (!available()) GTEST_SKIP() << "no GPU";
  testing::test_device() = {.kind = DeviceKind::kCuda};
  expect_parts(segments(), kQueries, 1);
  // Documents of three tokens, more than are taken at a time.
  std::vector<Segment> documents;
  constexpr int64_t kDocuments = 2 * kMostSegmentsAtATime + 7;
  for (int64_t n = 0; n < kDocuments; ++n) {
    documents.push_back({.q_row = 3 * n,
                         .q_len = 3,
                         .k_row = 3 * n,
                         .k_len = 3,
                         .band_lo = -kBandOpen,
                         .band_hi = 0});
  }
  expect_parts(documents, 3 * kDocuments, 3);
  testing::test_device() = kCpu;
}

// Memory is measured for one document and must do for any others.
TEST(AttentionWork, ScratchDependsOnRowsAlone) {
  testing::test_device() = {.kind = DeviceKind::kCuda};
  const auto scratch_of = [](std::span<const Segment> list) {
    ThreadPool pool(1);
    Arena arena = Arena::measure("measured", testing::test_device());
    const Context ctx{
        .stream = {.device = testing::test_device()}, .pool = &pool, .scratch = &arena};
    for_work(ctx, key_tiles, list, kKeys, kTileRows, [](const AttentionWork&) { FAIL(); });
    return arena.peak();
  };
  EXPECT_EQ(scratch_of({}), scratch_of(segments()));
  EXPECT_GT(scratch_of({}), 0);
  testing::test_device() = kCpu;
}

}  // namespace
}  // namespace longhaul::kernels::cuda
