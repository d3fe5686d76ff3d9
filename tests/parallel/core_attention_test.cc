// The executor: every strategy of the table on ranks as threads, against naive attention in fp64.
#include <gtest/gtest.h>

#include <mutex>

#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "tests/parallel/core_attention_cases.h"
#include "tests/parallel/covering.h"

namespace longhaul::test {
namespace {

constexpr std::chrono::seconds kDeadline(60);
constexpr parallel::Mask kMasks[] = {{true, 0}, {false, 0}, {true, 9}};
struct Heads {
  int64_t q, kv;
};
constexpr Heads kHeads[] = {{8, 8}, {8, 2}, {8, 1}, {5, 5}};

int64_t tokens_of(int index, int ranks) {
  const int64_t tokens[] = {1, 7, std::max(ranks - 1, 1), 61, 97};
  return tokens[index];
}

parallel::Documents documents_of(int index, int64_t tokens) {
  if (index == 0) return parallel::Documents::whole(tokens);
  // One of 7 tokens and others that straddle ranks.
  return random_documents(tokens, index == 1 ? 7 : 20, 3);
}

TEST(CoreAttention, EveryStrategyEqualsNaiveAttention) {
  const auto strategies = parallel::strategies();
  const auto layouts = parallel::layout_kinds();
  const std::vector<int> sizes{
      static_cast<int>(strategies.size()), static_cast<int>(layouts.size()),    9, 5,
      static_cast<int>(std::size(kHeads)), static_cast<int>(std::size(kMasks)), 3, 2};
  int run = 0;
  for (const Case& pick : cases_of(sizes)) {
    const int ranks = pick[2] + 1;
    const int64_t tokens = tokens_of(pick[3], ranks);
    const Heads heads = kHeads[pick[4]];
    const AttentionCase c{.strategy = std::string(strategies[static_cast<size_t>(pick[0])].name),
                          .layout = std::string(layouts[static_cast<size_t>(pick[1])].name),
                          .tokens = tokens,
                          .heads = {heads.q, heads.kv, 6, 4},
                          .mask = kMasks[pick[5]],
                          .documents = documents_of(pick[6], tokens),
                          .dtype = DType::kF64,
                          .in_place = pick[7] == 1,
                          .ranks_per_node = ranks % 2 == 0   ? 2
                                            : ranks % 3 == 0 ? 3
                                                             : 1};
    SCOPED_TRACE(absl::StrCat(c.name(), " P=", ranks));
    if (refusal(c, ranks)) continue;
    const AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 5);
    std::vector<double> worst;
    dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
      const auto e = errors(group, c, truth, run_core_attention(group, c, truth));
      if (group.rank() == 0) worst = e;
    });
    for (double e : worst) EXPECT_LE(e, 1e-12);
    ++run;
  }
  EXPECT_GE(run, 9 * 5);
}

// f32 accumulates in f32 end to end: sharding may cost no more than twice one rank's rounding.
TEST(CoreAttention, SinglePrecisionLosesNothingOverRanks) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const char* layout : {"contiguous", "zigzag", "striped", "balanced"}) {
      const AttentionCase c{.strategy = "ring",
                            .layout = layout,
                            .tokens = 257,
                            .heads = {4, 2, 32, 32},
                            .mask = {true, 0},
                            .documents = random_documents(257, 90, 1),
                            .dtype = dtype,
                            .in_place = true,
                            .ranks_per_node = 1};
      SCOPED_TRACE(c.name());
      const AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 8);
      std::vector<double> one, many;
      for (int ranks : {1, 5}) {
        dist::run_local(ranks, kDeadline, [&](dist::Group& group) {
          const auto e = errors(group, c, truth, run_core_attention(group, c, truth));
          if (group.rank() == 0) (ranks == 1 ? one : many) = e;
        });
      }
      for (size_t i = 0; i < one.size(); ++i) EXPECT_LE(many[i], 2 * one[i]) << "tensor " << i;
    }
  }
}

TEST(CoreAttention, RerunsAreBitIdentical) {
  const AttentionCase c{.strategy = "ring",
                        .layout = "zigzag",
                        .tokens = 131,
                        .heads = {4, 2, 16, 16},
                        .mask = {true, 0},
                        .documents = random_documents(131, 40, 2),
                        .dtype = DType::kF32,
                        .in_place = true,
                        .ranks_per_node = 1};
  const AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 9);
  constexpr int kRanks = 4;
  std::vector<AttentionResult> runs[2] = {std::vector<AttentionResult>(kRanks),
                                          std::vector<AttentionResult>(kRanks)};
  for (auto& run : runs) {
    dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
      run[static_cast<size_t>(group.rank())] = run_core_attention(group, c, truth);
    });
  }
  EXPECT_EQ(runs[0], runs[1]);
}

// Byte counters are the plan's transfers, and reading in place replaces exactly the keys and
// values.
TEST(CoreAttention, BytesAreThePlans) {
  constexpr int kRanks = 4;
  for (bool in_place : {false, true}) {
    const AttentionCase c{.strategy = "ring",
                          .layout = "zigzag",
                          .tokens = 64,
                          .heads = {4, 2, 8, 8},
                          .mask = {true, 0},
                          .documents = parallel::Documents::whole(64),
                          .dtype = DType::kF32,
                          .in_place = in_place,
                          .ranks_per_node = 1};
    const AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 4);
    std::vector<AttentionResult> results(kRanks);
    dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
      results[static_cast<size_t>(group.rank())] = run_core_attention(group, c, truth);
    });
    const int64_t kv = (kRanks - 1) * (c.tokens / kRanks) * 2 * 2 * 8 * 4;
    for (const AttentionResult& r : results) {
      // Forward k, v; backward k, v and their gradients.
      EXPECT_EQ(r.sent_bytes, in_place ? kv : 3 * kv);
      EXPECT_EQ(r.in_place_bytes, in_place ? 2 * kv : 0);
    }
  }
}

// Keys and values of another document must not matter, whatever the rank they lie on.
TEST(CoreAttention, DocumentsAreIsolated) {
  AttentionCase c{.strategy = "ring",
                  .layout = "striped",
                  .tokens = 60,
                  .heads = {2, 1, 8, 8},
                  .mask = {true, 0},
                  .documents = parallel::Documents(60, {0, 23, 41}),
                  .dtype = DType::kF64,
                  .in_place = true,
                  .ranks_per_node = 1};
  AttentionTruth truth = attention_truth(c.documents, c.mask, c.heads, 6);
  constexpr int kRanks = 3;
  const auto run = [&] {
    std::vector<AttentionResult> results(kRanks);
    dist::run_local(kRanks, kDeadline, [&](dist::Group& group) {
      results[static_cast<size_t>(group.rank())] = run_core_attention(group, c, truth);
    });
    return results;
  };
  const auto before = run();
  for (int64_t d = 0; d < 8; ++d) {
    truth.k.at(25, 0)[d] += 1;  // in the second document
    truth.v.at(25, 0)[d] -= 2;
  }
  const auto after = run();
  int changed = 0;
  const parallel::TokenLayout layout = layout_of(c, kRanks);
  for (int r = 0; r < kRanks; ++r) {
    for (int64_t row = 0; row < layout.rows(r); ++row) {
      const int64_t position = layout.position(r, row);
      for (int64_t i = 0; i < 2 * 8; ++i) {
        const auto index = static_cast<size_t>(row * 16 + i);
        const bool same =
            before[static_cast<size_t>(r)].out[index] == after[static_cast<size_t>(r)].out[index];
        if (position < 25 || position >= 41) {
          EXPECT_TRUE(same) << position;
        } else {
          changed += same ? 0 : 1;
        }
      }
    }
  }
  EXPECT_GT(changed, 16 * 10);
}

}  // namespace
}  // namespace longhaul::test
