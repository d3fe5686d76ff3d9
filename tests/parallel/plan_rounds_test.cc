// The strategies in rounds, group_cast and lightseq: sizes and packings beyond the pairwise cases
// of plan_attention_test.cc, and what they promise about rows, work and rounds.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/parts.h"
#include "tests/parallel/attention_world.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::Documents;
using parallel::Field;
using parallel::HeadShape;
using parallel::Mask;
using parallel::Plan;
using parallel::Problem;
using parallel::Run;
using parallel::RunList;
using parallel::Span;
using parallel::Step;
using parallel::Strategy;
using parallel::Task;
using parallel::TokenLayout;
using parallel::Transfer;

constexpr Mask kMasks[] = {{true, 0}, {true, 5}, {true, 40}, {false, 0}, {false, 6}};
constexpr HeadShape kShapes[] = {
    {.q_heads = 4, .kv_heads = 4, .head_dim = 3, .value_dim = 2},
    {.q_heads = 4, .kv_heads = 1, .head_dim = 3, .value_dim = 2},
    {.q_heads = 3, .kv_heads = 3, .head_dim = 3, .value_dim = 2},
};

std::vector<Documents> packings(int64_t tokens, uint64_t seed) {
  std::vector<Documents> result{Documents::whole(tokens), random_documents(tokens, 11, seed)};
  std::vector<int64_t> sevens;
  for (int64_t at = 0; at < tokens; at += 7) sevens.push_back(at);
  result.emplace_back(tokens, std::move(sevens));
  return result;
}

void verify(const Strategy& strategy, const Problem& problem, uint64_t seed) {
  const AttentionTruth truth =
      attention_truth(problem.documents, problem.mask, problem.heads, seed);
  ASSERT_NO_THROW(verify_attention(
      problem,
      [&](Direction direction, int rank) { return strategy.plan(problem, direction, rank); }, truth,
      seed));
}

TEST(PlanRounds, LightSeqEqualsNaiveAttention) {
  const Strategy& strategy = parallel::strategy("lightseq");
  uint64_t seed = 0;
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (const int64_t tokens : {int64_t{0}, int64_t{1}, int64_t{ranks - 1}, int64_t{53}}) {
      const TokenLayout layout = TokenLayout::contiguous(tokens, ranks);
      for (const Mask& mask : kMasks) {
        if (!mask.causal) continue;
        for (const Documents& documents : packings(tokens, ++seed)) {
          SCOPED_TRACE(absl::StrCat(ranks, " ranks, ", tokens, " tokens, window ", mask.window,
                                    ", ", documents.count(), " documents"));
          verify(strategy, {layout, documents, mask, kShapes[++seed % std::size(kShapes)]}, seed);
        }
      }
    }
  }
}

// Chunks of `chunk` tokens, dealt to the ranks in turn and back: many runs of stride 1.
TokenLayout dealt(int64_t tokens, int ranks, int64_t chunk) {
  std::vector<RunList> runs(static_cast<size_t>(ranks));
  int index = 0;
  for (int64_t at = 0; at < tokens; at += chunk, ++index) {
    const int turn = index % (2 * ranks);
    runs[static_cast<size_t>(turn < ranks ? turn : 2 * ranks - 1 - turn)].push_back(
        {at, std::min(chunk, tokens - at), 1});
  }
  return TokenLayout(tokens, std::move(runs));
}

TEST(PlanRounds, GroupCastEqualsNaiveAttention) {
  const Strategy& strategy = parallel::strategy("group_cast");
  uint64_t seed = 100;
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (const int64_t tokens : {int64_t{ranks - 1}, int64_t{53}}) {
      std::vector<TokenLayout> layouts{dealt(tokens, ranks, 3)};
      for (const auto& kind : parallel::layout_kinds()) layouts.push_back(kind.make(tokens, ranks));
      for (const TokenLayout& layout : layouts) {
        for (const Mask& mask : kMasks) {
          for (const Documents& documents : packings(tokens, ++seed)) {
            SCOPED_TRACE(absl::StrCat(ranks, " ranks, ", tokens, " tokens, causal ", mask.causal,
                                      ", window ", mask.window, ", ", documents.count(),
                                      " documents"));
            verify(strategy, {layout, documents, mask, kShapes[++seed % std::size(kShapes)]}, seed);
          }
        }
      }
    }
  }
}

// Rows that rank `reader` receives from each other, in the order of their transfers.
std::map<int, std::vector<Span>> received_keys(const Plan& plan) {
  std::map<int, std::vector<Span>> rows;
  for (const Step& step : plan.steps) {
    for (const Transfer& t : step.transfers) {
      if (!t.send && t.fields.has(Field::kK)) rows[t.peer].push_back(t.rows);
    }
  }
  return rows;
}

// Home rows of `owner` that some query of `reader` sees, position by position.
std::set<int64_t> needed_rows(const Problem& problem, int reader, int owner) {
  std::set<int64_t> rows;
  const std::vector<int64_t> keys = problem.layout.positions(owner);
  for (const int64_t query : problem.layout.positions(reader)) {
    for (size_t row = 0; row < keys.size(); ++row) {
      if (allowed(query, keys[row], problem.mask, problem.documents)) {
        rows.insert(static_cast<int64_t>(row));
      }
    }
  }
  return rows;
}

TEST(PlanRounds, GroupCastMovesOnlyWhatSomeoneNeeds) {
  constexpr int kRanks = 5;
  for (const auto& kind : parallel::layout_kinds()) {
    const TokenLayout layout = kind.make(97, kRanks);
    for (const Mask& mask : kMasks) {
      for (const Documents& documents : packings(97, 5)) {
        const Problem problem{layout, documents, mask, kShapes[0]};
        for (int reader = 0; reader < kRanks; ++reader) {
          const auto received =
              received_keys(plan_group_cast(problem, Direction::kForward, reader));
          for (int owner = 0; owner < kRanks; ++owner) {
            if (owner == reader) continue;
            std::set<int64_t> rows;
            if (const auto it = received.find(owner); it != received.end()) {
              for (Span span : it->second) {
                for (int64_t row = span.begin; row < span.end(); ++row) {
                  EXPECT_TRUE(rows.insert(row).second) << "received twice";
                }
              }
            }
            EXPECT_EQ(rows, needed_rows(problem, reader, owner))
                << kind.name << ", rank " << reader << " from " << owner;
          }
        }
      }
    }
  }
}

// Where the needed rows are scattered, the closest are joined: few messages, and all rows in them.
TEST(PlanRounds, GroupCastSendsFewMessages) {
  const TokenLayout layout = dealt(1200, 3, 10);
  const Documents documents = random_documents(1200, 300, 2);
  const Problem problem{layout, documents, {true, 3}, kShapes[0]};
  size_t most = 0;
  for (int reader = 0; reader < 3; ++reader) {
    for (const auto& [owner, spans] :
         received_keys(plan_group_cast(problem, Direction::kForward, reader))) {
      most = std::max(most, spans.size());
      std::set<int64_t> rows;
      for (Span span : spans) {
        for (int64_t row = span.begin; row < span.end(); ++row) rows.insert(row);
      }
      for (int64_t row : needed_rows(problem, reader, owner)) EXPECT_TRUE(rows.contains(row));
    }
  }
  EXPECT_EQ(most, 16u);
  verify(parallel::strategy("group_cast"), problem, 3);
}

// Steps in which nobody has anything to do for anybody are none.
TEST(PlanRounds, GroupCastHasRoundsOnlyForNeighboursThatNeedEachOther) {
  constexpr int kRanks = 16;
  const TokenLayout layout = TokenLayout::zigzag(3200, kRanks);  // chunks of 100
  const Documents documents = [] {
    std::vector<int64_t> begins;
    for (int64_t at = 0; at < 3200; at += 80) begins.push_back(at);
    return Documents(3200, std::move(begins));
  }();
  const Problem packed{layout, documents, {true, 0}, kShapes[0]};
  const Documents one = Documents::whole(3200);
  const Problem whole{layout, one, {true, 0}, kShapes[0]};
  for (int r = 0; r < kRanks; ++r) {
    // A chunk's queries see keys of the chunk before it: of ranks r - 1 and r + 1.
    EXPECT_LE(plan_group_cast(packed, Direction::kForward, r).steps.size(), 3u);
    EXPECT_LE(plan_group_cast(packed, Direction::kBackward, r).steps.size(), 4u);
    EXPECT_EQ(plan_group_cast(whole, Direction::kForward, r).steps.size(), size_t{kRanks});
    // Buffers are the same for all documents, so that memory is known beforehand.
    EXPECT_EQ(plan_group_cast(packed, Direction::kBackward, r).slots,
              plan_group_cast(whole, Direction::kBackward, r).slots);
  }
}

int64_t work(const Plan& plan) {
  int64_t pairs = 0;
  for (const Step& step : plan.steps) {
    for (const Task& task : step.tasks) {
      for (const Segment& segment : task.segments) pairs += area(segment) * task.q_heads.length;
    }
  }
  return pairs;
}

// The promise of the strategy: on a contiguous layout a causal mask is equal work for all ranks,
// also where the number of ranks is even (and that of heads is: the last block is halved by heads).
TEST(PlanRounds, LightSeqIsEqualWorkForAll) {
  constexpr int64_t kRows = 12, kHeads = 4;
  for (int ranks = 1; ranks <= 9; ++ranks) {
    const TokenLayout layout = TokenLayout::contiguous(kRows * ranks, ranks);
    const Documents documents = Documents::whole(kRows * ranks);
    const Problem problem{layout, documents, {true, 0}, kShapes[0]};
    const int64_t expected =
        kHeads * (kRows * (kRows + 1) / 2) + kHeads * kRows * kRows * (ranks - 1) / 2;
    for (int r = 0; r < ranks; ++r) {
      for (Direction direction : {Direction::kForward, Direction::kBackward}) {
        EXPECT_EQ(work(plan_lightseq(problem, direction, r)), expected)
            << "rank " << r << " of " << ranks;
      }
    }
  }
}

// Whatever the mask leaves of the last block is halved.
TEST(PlanRounds, LightSeqHalvesTheLastBlockByHeads) {
  const TokenLayout layout = TokenLayout::contiguous(400, 2);
  const Documents documents(400, {0, 90, 160, 330});  // one of them straddles the ranks
  const auto block = [&](const HeadShape& heads, int rank) {
    const Problem problem{layout, documents, {true, 120}, heads};
    const Plan plan = plan_lightseq(problem, Direction::kForward, rank);
    int64_t pairs = 0;
    for (const Task& task : plan.steps.at(1).tasks) {
      for (const Segment& segment : task.segments) pairs += area(segment) * task.q_heads.length;
    }
    return pairs;
  };
  EXPECT_GT(block(kShapes[0], 0), 0);
  EXPECT_EQ(block(kShapes[0], 0), block(kShapes[0], 1));
  EXPECT_EQ(2 * block(kShapes[2], 0), block(kShapes[2], 1));  // three heads: one and two
}

// Buffers for documents of any kind are those for one document.
TEST(PlanRounds, LightSeqHasBuffersThatDoNotDependOnDocuments) {
  for (int ranks = 1; ranks <= 9; ++ranks) {
    const TokenLayout layout = TokenLayout::contiguous(100, ranks);
    const Documents whole = Documents::whole(100);
    for (const Documents& documents : packings(100, 4)) {
      for (int r = 0; r < ranks; ++r) {
        const auto slots = [&](const Documents& packing) {
          return plan_lightseq({layout, packing, {true, 0}, kShapes[0]}, Direction::kBackward, r)
              .slots;
        };
        EXPECT_EQ(slots(documents), slots(whole));
        EXPECT_LE(slots(whole).size(), 6u);
      }
    }
  }
}

TEST(PlanRounds, LightSeqRefusesWhatItCannotDo) {
  const Strategy& lightseq = parallel::strategy("lightseq");
  const Documents documents = Documents::whole(64);
  const auto refusal = [&](const TokenLayout& layout, Mask mask) {
    return lightseq.refusal({layout, documents, mask, kShapes[0]}).value_or("");
  };
  const auto holds = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos;
  };
  EXPECT_EQ(refusal(TokenLayout::contiguous(64, 4), {true, 0}), "");
  EXPECT_EQ(refusal(TokenLayout::contiguous(64, 4), {true, 7}), "");
  EXPECT_TRUE(holds(refusal(TokenLayout::contiguous(64, 4), {false, 0}), "make the mask causal"));
  EXPECT_TRUE(holds(refusal(TokenLayout::zigzag(64, 4), {true, 0}), "use layout contiguous"));
  EXPECT_TRUE(holds(refusal(TokenLayout::striped(64, 4), {true, 0}), "use layout contiguous"));
}

TEST(PlanRounds, SpansAreJoinedWhereTheyTouchThenWhereTheyAreClose) {
  using Spans = std::vector<Span>;
  const Spans spans{{20, 2}, {0, 4}, {4, 3}, {30, 5}, {8, 2}, {1, 2}};
  EXPECT_EQ(parallel::joined(spans), (Spans{{0, 7}, {8, 2}, {20, 2}, {30, 5}}));
  EXPECT_EQ(parallel::joined(spans, 4), (Spans{{0, 7}, {8, 2}, {20, 2}, {30, 5}}));
  EXPECT_EQ(parallel::joined(spans, 3), (Spans{{0, 10}, {20, 2}, {30, 5}}));
  EXPECT_EQ(parallel::joined(spans, 2), (Spans{{0, 10}, {20, 15}}));
  EXPECT_EQ(parallel::joined(spans, 1), (Spans{{0, 35}}));
  EXPECT_EQ(parallel::joined({}, 1), Spans{});
  // No more than has to be, of gaps that are equal.
  EXPECT_EQ(parallel::joined({{0, 1}, {2, 1}, {4, 1}, {6, 1}}, 3).size(), 3u);
}

}  // namespace
}  // namespace longhaul::test
