// The balanced layout: what it promises for any documents, and what it reaches on packed ones.
#include "parallel/layout/balanced.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "tests/parallel/attention_world.h"

namespace longhaul::test {
namespace {

using parallel::balanced;
using parallel::BalancedOptions;
using parallel::Documents;
using parallel::Load;
using parallel::loads_of;
using parallel::Mask;
using parallel::Run;
using parallel::RunList;
using parallel::TokenLayout;

constexpr Mask kMasks[] = {{true, 0}, {false, 0}, {true, 1}, {true, 9}, {false, 4}};

// Position by position, from the definition of the mask.
Load true_load(const TokenLayout& layout, const Documents& documents, const Mask& mask, int rank) {
  const std::vector<int64_t> own = layout.positions(rank);
  const std::set<int64_t> mine(own.begin(), own.end());
  std::set<int64_t> remote;
  Load load;
  for (const int64_t query : own) {
    for (int64_t key = 0; key < layout.tokens(); ++key) {
      if (!allowed(query, key, mask, documents)) continue;
      ++load.area;
      if (!mine.contains(key)) remote.insert(key);
    }
  }
  load.remote_rows = static_cast<int64_t>(remote.size());
  return load;
}

int64_t most_keys_of_a_query(const Documents& documents, const Mask& mask) {
  int64_t most = 0;
  for (int64_t query = 0; query < documents.tokens(); ++query) {
    int64_t keys = 0;
    for (int64_t key = 0; key < documents.tokens(); ++key) {
      keys += allowed(query, key, mask, documents) ? 1 : 0;
    }
    most = std::max(most, keys);
  }
  return most;
}

// The bound holds whatever the documents are, for the exact loads; every rank has its rows.
TEST(BalancedLayout, KeepsItsPromisesForAnyDocuments) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 300; ++round) {
    const int ranks = 1 + static_cast<int>(random() % 9);
    const auto tokens = static_cast<int64_t>(random() % 90);
    const Documents documents =
        round % 5 == 0
            ? Documents::whole(tokens)
            : random_documents(tokens, 1 + static_cast<int64_t>(random() % 30), random());
    const Mask& mask = kMasks[random() % std::size(kMasks)];
    const BalancedOptions options{.bound = 1.0 + static_cast<double>(random() % 4) * 0.1,
                                  .row_price = random() % 3 == 0 ? -1.0 : 3.0,
                                  .chunks_per_rank = 1 + static_cast<int64_t>(random() % 8)};
    SCOPED_TRACE(absl::StrCat("round ", round, ": ", ranks, " ranks, ", tokens, " tokens, ",
                              documents.count(), " documents, causal ", mask.causal, " window ",
                              mask.window, " bound ", options.bound));
    const TokenLayout layout = balanced(documents, mask, ranks, options);
    const TokenLayout sizes = TokenLayout::contiguous(tokens, ranks);
    const std::vector<Load> loads = loads_of(layout, documents, mask);
    double area = 0;
    for (int r = 0; r < ranks; ++r) {
      ASSERT_EQ(layout.rows(r), sizes.rows(r));
      ASSERT_EQ(layout.runs(r).size(), layout.runs(0).size());
      const std::vector<int64_t> positions = layout.positions(r);
      ASSERT_TRUE(std::is_sorted(positions.begin(), positions.end()));
      const Load truth = true_load(layout, documents, mask, r);
      ASSERT_EQ(loads[static_cast<size_t>(r)].area, truth.area);
      ASSERT_EQ(loads[static_cast<size_t>(r)].remote_rows, truth.remote_rows);
      area += static_cast<double>(truth.area);
    }
    const auto limit = static_cast<double>(most_keys_of_a_query(documents, mask));
    for (int r = 0; r < ranks; ++r) {
      const double share = area * static_cast<double>(layout.rows(r)) /
                           static_cast<double>(std::max<int64_t>(1, tokens));
      ASSERT_LE(static_cast<double>(loads[static_cast<size_t>(r)].area),
                options.bound * share + limit + 1e-6);
    }
  }
}

TEST(BalancedLayout, LoadsOfRunsInAnyOrder) {
  const TokenLayout layout(10, {{{6, 2, 1}, {0, 3, 1}}, {{3, 3, 1}, {9, 1, 1}, {8, 1, 1}}});
  const Documents documents(10, {0, 4});
  for (const Mask& mask : kMasks) {
    for (int r = 0; r < 2; ++r) {
      EXPECT_EQ(load_of(layout, documents, mask, r), true_load(layout, documents, mask, r));
    }
  }
}

constexpr BalancedOptions kTight{.row_price = 0};

TEST(BalancedLayout, IsDeterministicAndDependsOnTheDocuments) {
  const Documents documents = random_documents(5000, 300, 1),
                  others = random_documents(5000, 300, 2);
  const auto runs = [](const TokenLayout& layout) {
    std::vector<RunList> all;
    for (int r = 0; r < layout.ranks(); ++r) all.push_back(layout.runs(r));
    return all;
  };
  EXPECT_EQ(runs(balanced(documents, {}, 8, kTight)), runs(balanced(documents, {}, 8, kTight)));
  EXPECT_NE(runs(balanced(documents, {}, 8, kTight)), runs(balanced(others, {}, 8, kTight)));
}

// A price of rows moves the choice along the frontier; balance costs rows.
TEST(BalancedLayout, ThePriceOfRowsChoosesThePoint) {
  const Documents documents = random_documents(1 << 17, 6000, 4);
  const auto measure = [&](double price) {
    const std::vector<Load> loads =
        loads_of(balanced(documents, {}, 16, {.bound = 4, .row_price = price}), documents, {});
    double area = 0, rows = 0;
    for (const Load& load : loads) {
      area = std::max(area, static_cast<double>(load.area));
      rows = std::max(rows, static_cast<double>(load.remote_rows));
    }
    return std::pair(area, rows);
  };
  const auto [free_area, free_rows] = measure(0);
  const auto [dear_area, dear_rows] = measure(1e9);
  EXPECT_LT(free_area, dear_area);
  EXPECT_GT(free_rows, dear_rows);
}

TEST(BalancedLayout, RefusesWhatItCannotCount) {
  EXPECT_THROW(balanced(Documents::whole((int64_t{1} << 31) + 1), {}, 2), Error);
}

// The heaviest chunk to the lightest rank that has room, chunks of equal size: balanced, and blind
// to where keys are.
TokenLayout greedy(const Documents& documents, int ranks, int64_t chunks_per_rank) {
  const int64_t tokens = documents.tokens(), chunks = ranks * chunks_per_rank;
  std::vector<std::pair<int64_t, Run>> heavy;
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t begin = i * tokens / chunks, end = (i + 1) * tokens / chunks;
    int64_t area = 0;
    for (int64_t p = begin; p < end; ++p) area += documents.local_position(p) + 1;
    heavy.push_back({area, {begin, end - begin, 1}});
  }
  std::stable_sort(heavy.begin(), heavy.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<RunList> runs(static_cast<size_t>(ranks));
  std::vector<int64_t> areas(static_cast<size_t>(ranks), 0);
  for (const auto& [area, run] : heavy) {
    size_t lightest = runs.size();
    for (size_t r = 0; r < runs.size(); ++r) {
      if (static_cast<int64_t>(runs[r].size()) == chunks_per_rank) continue;
      if (lightest == runs.size() || areas[r] < areas[lightest]) lightest = r;
    }
    runs[lightest].push_back(run);
    areas[lightest] += area;
  }
  return TokenLayout(tokens, std::move(runs));
}

// Lengths spread over two orders of magnitude, as packed corpora have them.
Documents packed(int64_t tokens, double shortest, double longest, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(std::log(shortest), std::log(longest));
  std::vector<int64_t> begins;
  for (int64_t at = 0; at < tokens; at += static_cast<int64_t>(std::exp(uniform(random)))) {
    begins.push_back(at);
  }
  return Documents(tokens, std::move(begins));
}

struct Quality {
  double balance = 0;  // max/mean area
  double rows = 0;     // mean remote rows per own row
};
Quality quality(const TokenLayout& layout, const Documents& documents) {
  double most = 0, area = 0, rows = 0;
  for (const Load& load : loads_of(layout, documents, {})) {
    most = std::max(most, static_cast<double>(load.area));
    area += static_cast<double>(load.area);
    rows += static_cast<double>(load.remote_rows);
  }
  return {most / (area / layout.ranks()), rows / static_cast<double>(layout.tokens())};
}

TEST(BalancedLayout, BalancesForAQuarterOfGreedysRows) {
  for (uint64_t seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE(seed);
    const Documents documents = packed(int64_t{8} << 15, 300, 30000, seed);
    const Quality plain = quality(TokenLayout::contiguous(documents.tokens(), 8), documents);
    const Quality blind = quality(greedy(documents, 8, 32), documents);
    const Quality ours =
        quality(balanced(documents, {}, 8, {.bound = 1.05, .row_price = -1}), documents);
    ASSERT_GT(plain.balance, 1.2);
    ASSERT_LT(blind.balance, 1.05);
    EXPECT_LE(ours.balance, 1.051);
    EXPECT_LE(ours.rows, blind.rows / 4);
  }
}

// One long document among short ones: its work must be spread, and whoever shares it needs its
// keys. The ranks with a query beyond position x are at least as many as fit the work beyond x.
TEST(BalancedLayout, ComesNearTheFewestRowsPossible) {
  constexpr int kRanks = 16;
  constexpr int64_t kTokens = int64_t{kRanks} << 13, kLong = kTokens / 4;
  std::vector<int64_t> begins{0};
  for (int64_t at = 5000 + kLong; at < kTokens; at += 900) begins.push_back(at);
  begins.insert(begins.begin() + 1, 5000);
  const Documents documents(kTokens, begins);
  const Quality ours =
      quality(balanced(documents, {}, kRanks, {.bound = 1.05, .row_price = -1}), documents);
  EXPECT_LE(ours.balance, 1.051);
  double area = 0, least = 0;
  for (int64_t d = 0; d < documents.count(); ++d) {
    const auto length = static_cast<double>(documents.end(d) - documents.begin(d));
    area += length * (length + 1) / 2;
  }
  for (int64_t d = 0; d < documents.count(); ++d) {
    const auto length = static_cast<double>(documents.end(d) - documents.begin(d));
    for (double x2 = length * length; x2 > 0; x2 -= 2 * ours.balance * area / kRanks) {
      least += std::sqrt(x2);
    }
  }
  least = least / static_cast<double>(kTokens) - 1;
  EXPECT_GE(ours.rows, least);
  EXPECT_LE(ours.rows, 1.25 * least);
}

}  // namespace
}  // namespace longhaul::test
