// Strategies that gather rows of several ranks: groups of usp and head ranges of all_gather, whose
// corner cases the table's test (plan_attention_test.cc) meets only in pairs of factors.
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "tests/parallel/attention_world.h"
#include "tests/parallel/covering.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::Documents;
using parallel::HeadShape;
using parallel::LayoutKind;
using parallel::Plan;
using parallel::Problem;
using parallel::Slot;
using parallel::Step;
using parallel::TokenLayout;

constexpr Direction kDirections[] = {Direction::kForward, Direction::kBackward};

struct Heads {
  int64_t q, kv;
  HeadShape shape() const { return {.q_heads = q, .kv_heads = kv, .head_dim = 3, .value_dim = 2}; }
};

// One document of 7 tokens, as others of its kind across a border of ranks; else random ones.
Documents packed(int64_t tokens, uint64_t seed) {
  std::vector<int64_t> begins = random_documents(tokens, 11, seed).begins();
  std::erase_if(begins, [](int64_t begin) { return begin > 0 && begin < 12; });
  for (int64_t begin : {12, 5}) {
    if (begin < tokens) begins.insert(begins.begin() + 1, begin);
  }
  std::set<int64_t> sorted(begins.begin(), begins.end());
  return {tokens, {sorted.begin(), sorted.end()}};
}

void expect_truth(const Problem& problem,
                  Plan (*planner)(const Problem& problem, Direction direction, int rank),
                  uint64_t seed) {
  const AttentionTruth truth =
      attention_truth(problem.documents, problem.mask, problem.heads, seed);
  EXPECT_NO_THROW(verify_attention(
      problem, [&](Direction direction, int rank) { return planner(problem, direction, rank); },
      truth, seed));
}

TEST(PlanGroups, UspOfEveryShape) {
  constexpr std::pair<int, int> kGroups[] = {{4, 2}, {6, 2}, {6, 3}, {8, 2}, {8, 4},
                                             {9, 3}, {3, 3}, {5, 1}, {8, 8}};
  constexpr Heads kHeads[] = {{8, 8}, {8, 2}, {8, 1}, {5, 5}, {6, 3}, {1, 1}, {2, 1}};
  constexpr int64_t kTokens[] = {61, 5, 1, 97};  // 5 and 1: shards and whole groups are empty
  const auto layouts = parallel::layout_kinds();
  uint64_t seed = 0;
  for (const Case& c :
       cases_of({static_cast<int>(std::size(kGroups)), static_cast<int>(std::size(kHeads)),
                 static_cast<int>(std::size(kTokens)), static_cast<int>(layouts.size()), 2})) {
    const auto [ranks, per_node] = kGroups[c[0]];
    const Heads& heads = kHeads[c[1]];
    const int64_t tokens = kTokens[c[2]];
    const LayoutKind& kind = layouts[static_cast<size_t>(c[3])];
    SCOPED_TRACE(absl::StrCat(ranks, " ranks, ", per_node, " per node, heads ", heads.q, "/",
                              heads.kv, ", ", tokens, " tokens, ", std::string(kind.name),
                              c[4] == 0 ? "" : " packed"));
    const TokenLayout layout = kind.make(tokens, ranks);
    const Documents documents = c[4] == 0 ? Documents::whole(tokens) : packed(tokens, ++seed);
    expect_truth({layout, documents, {true, 0}, heads.shape(), per_node}, parallel::plan_usp,
                 ++seed);
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

TEST(PlanGroups, UspOfOneGroupIsUlyssesAndOfGroupsOfOneIsTheRing) {
  const Documents documents = packed(61, 1);
  for (const LayoutKind& kind : parallel::layout_kinds()) {
    const TokenLayout layout = kind.make(61, 4);
    const Problem one{layout, documents, {true, 0}, Heads{6, 3}.shape(), 4};
    const Problem many{layout, documents, {true, 0}, Heads{6, 3}.shape(), 1};
    for (Direction direction : kDirections) {
      for (int rank = 0; rank < 4; ++rank) {
        EXPECT_EQ(plan_usp(one, direction, rank), plan_ulysses(many, direction, rank));
        EXPECT_EQ(plan_usp(many, direction, rank), plan_ring(many, direction, rank));
        EXPECT_NE(plan_usp(one, direction, rank), plan_usp(many, direction, rank));
      }
    }
  }
}

TEST(PlanGroups, UspRefusesNodesThatDoNotDivide) {
  const TokenLayout layout = TokenLayout::zigzag(64, 6);
  const Documents documents = Documents::whole(64);
  for (int per_node : {4, 0, 12}) {
    const Problem problem{layout, documents, {}, {}, per_node};
    const auto refusal = parallel::strategy("usp").refusal(problem);
    ASSERT_TRUE(refusal.has_value());
    EXPECT_NE(refusal->find(absl::StrCat("6 ranks and ", per_node, " per node")), std::string::npos)
        << *refusal;
    EXPECT_NE(refusal->find("use strategy"), std::string::npos) << *refusal;
    try {
      plan_usp(problem, Direction::kForward, 0);
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
    }
  }
}

// With groups of more ranks than there are heads, some ranks only give and take their rows.
TEST(PlanGroups, RanksWithoutHeadsComputeNothing) {
  const TokenLayout layout = TokenLayout::zigzag(80, 8);
  const Documents documents = Documents::whole(80);
  const Problem problem{layout, documents, {true, 0}, Heads{3, 1}.shape(), 4};
  for (Direction direction : kDirections) {
    for (int rank : {3, 7}) {
      const Plan plan = plan_usp(problem, direction, rank);
      EXPECT_EQ(plan.slots.size(), 1u);
      for (const Step& step : plan.steps) {
        EXPECT_TRUE(step.tasks.empty());
        for (const parallel::Transfer& t : step.transfers) EXPECT_EQ(t.peer / 4, rank / 4);
      }
    }
    EXPECT_GT(plan_usp(problem, direction, 2).slots.size(), 2u);
  }
}

// Gradients of queries are whole one hop before those of keys, and need not wait for them.
TEST(PlanGroups, UspReturnsQueriesDuringTheLastHopOfKeys) {
  const TokenLayout layout = TokenLayout::zigzag(80, 8);
  const Documents documents = Documents::whole(80);
  const Problem problem{layout, documents, {true, 0}, Heads{4, 4}.shape(), 2};
  const Plan plan = plan_usp(problem, Direction::kBackward, 3);
  std::set<size_t> queries, hops, keys;
  for (size_t s = 0; s < plan.steps.size(); ++s) {
    for (const parallel::Transfer& t : plan.steps[s].transfers) {
      if (t.fields.has(parallel::Field::kDQ)) queries.insert(s);
      if (t.fields.has(parallel::Field::kDK)) (t.peer / 2 == 1 ? keys : hops).insert(s);
    }
  }
  EXPECT_EQ(hops, (std::set<size_t>{3, 4, 5}));
  EXPECT_EQ(queries, std::set<size_t>{5});
  EXPECT_EQ(keys, std::set<size_t>{6});
}

TEST(PlanGroups, AllGatherOfEveryRange) {
  constexpr Heads kHeads[] = {{8, 8}, {8, 2}, {8, 1}, {5, 5}, {6, 3}};
  constexpr int kRanks[] = {1, 2, 3, 5, 8, 9};
  constexpr int64_t kTokens[] = {61, 7, 5, 1};
  constexpr int64_t kAtOnce[] = {0, 1, 2, 3, 100};
  const auto layouts = parallel::layout_kinds();
  uint64_t seed = 0;
  for (const Case& c :
       cases_of({static_cast<int>(std::size(kHeads)), static_cast<int>(std::size(kRanks)),
                 static_cast<int>(std::size(kTokens)), static_cast<int>(std::size(kAtOnce)),
                 static_cast<int>(layouts.size()), 2})) {
    const Heads& heads = kHeads[c[0]];
    const int ranks = kRanks[c[1]];
    const int64_t tokens = kTokens[c[2]];
    const LayoutKind& kind = layouts[static_cast<size_t>(c[4])];
    SCOPED_TRACE(absl::StrCat(ranks, " ranks, heads ", heads.q, "/", heads.kv, ", ", kAtOnce[c[3]],
                              " at once, ", tokens, " tokens, ", std::string(kind.name),
                              c[5] == 0 ? "" : " packed"));
    const TokenLayout layout = kind.make(tokens, ranks);
    const Documents documents = c[5] == 0 ? Documents::whole(tokens) : packed(tokens, ++seed);
    Problem problem{layout, documents, {true, 0}, heads.shape()};
    problem.gather_heads = kAtOnce[c[3]];
    expect_truth(problem, parallel::plan_all_gather, ++seed);
    if (HasFatalFailure() || HasNonfatalFailure()) return;
  }
}

// However many ranges there are, two of them have memory; none holds more heads than asked for.
TEST(PlanGroups, HeadRangesBoundTheMemoryOfAllGather) {
  const TokenLayout layout = TokenLayout::zigzag(64, 4);
  const Documents documents = Documents::whole(64);
  struct Expected {
    int64_t kv_heads, at_once;
    size_t ranges;
    int64_t most;
  };
  for (const auto& [kv_heads, at_once, ranges, most] : {Expected{8, 1, 8, 1},
                                                        {8, 3, 3, 3},
                                                        {8, 0, 4, 2},
                                                        {5, 2, 3, 2},
                                                        {5, 0, 3, 2},
                                                        {1, 0, 1, 1},
                                                        {8, 8, 1, 8},
                                                        {8, 99, 1, 8}}) {
    SCOPED_TRACE(absl::StrCat(kv_heads, " kv heads, ", at_once, " at once"));
    Problem problem{layout, documents, {true, 0}, Heads{2 * kv_heads, kv_heads}.shape()};
    problem.gather_heads = at_once;
    for (Direction direction : kDirections) {
      const Plan plan = plan_all_gather(problem, direction, 1);
      ASSERT_EQ(plan.slots.size(), 1 + ranges);
      size_t with_memory = 0;
      int64_t held = 0, largest = 0;
      for (size_t s = 1; s < plan.slots.size(); ++s) {
        const Slot& slot = plan.slots[s];
        with_memory += slot.memory_of == -1 ? 1 : 0;
        EXPECT_EQ(slot.k_rows, 64);
        largest = std::max(largest, slot.kv_heads.length);
        held += slot.kv_heads.length;
      }
      EXPECT_EQ(with_memory, std::min<size_t>(ranges, 2));
      EXPECT_EQ(largest, most);
      EXPECT_EQ(held, kv_heads);
    }
  }
}

// Rows are gathered in order of position: each run of queries meets one band per document.
TEST(PlanGroups, GatheredKeysAreOneTriangleForADocument) {
  const Documents documents(61, {0, 20, 27, 50});
  for (int ranks : {1, 4, 7}) {
    const TokenLayout contiguous = TokenLayout::contiguous(61, ranks);
    const Problem problem{contiguous, documents, {true, 0}, Heads{4, 2}.shape()};
    for (int rank = 0; rank < ranks; ++rank) {
      const int64_t begin = contiguous.position(rank, 0);
      const int64_t end = begin + contiguous.rows(rank);
      const auto met = static_cast<size_t>(documents.at(end - 1) - documents.at(begin) + 1);
      for (Direction direction : kDirections) {
        for (const Step& step : plan_all_gather(problem, direction, rank).steps) {
          for (const parallel::Task& task : step.tasks) EXPECT_EQ(task.segments.size(), met);
        }
        const TokenLayout zigzag = TokenLayout::zigzag(61, ranks);
        const Problem exchanged{zigzag, documents, {true, 0}, Heads{4, 2}.shape()};
        for (const Step& step : plan_ulysses(exchanged, direction, rank).steps) {
          for (const parallel::Task& task : step.tasks) EXPECT_EQ(task.segments.size(), 4u);
        }
      }
    }
  }
}

TEST(PlanGroups, AllGatherRefusesNegativeRanges) {
  const TokenLayout layout = TokenLayout::zigzag(64, 2);
  const Documents documents = Documents::whole(64);
  Problem problem{layout, documents, {}, {}};
  problem.gather_heads = -2;
  const auto refusal = parallel::strategy("all_gather").refusal(problem);
  ASSERT_TRUE(refusal.has_value());
  EXPECT_NE(refusal->find("-2 kv heads"), std::string::npos) << *refusal;
  EXPECT_THROW(plan_all_gather(problem, Direction::kForward, 0), Error);
}

// Memory is measured before the first sample: it must not depend on the sample's documents. The
// memory of disaggregated has a limit instead (schedule_test.cc).
TEST(PlanGroups, SlotsDoNotDependOnDocuments) {
  const Documents whole = Documents::whole(61), many = random_documents(61, 4, 3);
  for (const parallel::Strategy& strategy : parallel::strategies()) {
    if (strategy.name == "disaggregated") continue;
    for (const LayoutKind& kind : parallel::layout_kinds()) {
      const TokenLayout layout = kind.make(61, 6);
      const Problem one{layout, whole, {true, 0}, Heads{6, 3}.shape(), 2};
      const Problem packed{layout, many, {true, 0}, Heads{6, 3}.shape(), 2};
      if (strategy.refusal(one)) continue;
      for (Direction direction : kDirections) {
        for (int rank = 0; rank < 6; ++rank) {
          EXPECT_EQ(strategy.plan(one, direction, rank).slots,
                    strategy.plan(packed, direction, rank).slots)
              << strategy.name << " " << kind.name << " rank " << rank;
        }
      }
    }
  }
}

}  // namespace
}  // namespace longhaul::test
