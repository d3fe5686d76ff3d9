// Every strategy of the table, forward and backward, against naive attention in fp64.
#include <gtest/gtest.h>

#include <map>
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
using parallel::Mask;
using parallel::Plan;
using parallel::Problem;
using parallel::Strategy;
using parallel::TokenLayout;

struct MaskCase {
  const char* name;
  Mask mask;
  bool packed;  // several documents, of which most straddle ranks
};
constexpr MaskCase kMasks[] = {{"causal", {true, 0}, false},
                               {"full", {false, 0}, false},
                               {"window", {true, 5}, false},
                               {"wide window", {true, 40}, false},
                               {"packed", {true, 0}, true},
                               {"packed window", {true, 9}, true},
                               {"packed full", {false, 0}, true},
                               {"prefix", {true, 0, 9}, false},
                               {"packed window prefix", {true, 9, 4}, true},
                               {"packed full window prefix", {false, 6, 5}, true}};

struct Heads {
  int64_t q, kv;
};
constexpr Heads kHeads[] = {{8, 8}, {8, 2}, {8, 1}, {5, 5}, {6, 3}};

int64_t tokens_of(int index, int ranks) {
  const int64_t tokens[] = {0, 1, 7, ranks - 1, 61, 127};
  return tokens[index];
}

// The index-th divisor of `ranks`, again and again.
int ranks_per_node(int ranks, int index) {
  std::vector<int> divisors;
  for (int d = 1; d <= ranks; ++d) {
    if (ranks % d == 0) divisors.push_back(d);
  }
  return divisors[static_cast<size_t>(index) % divisors.size()];
}

// A strategy says no by its name, and its planner does as well.
void expect_refusal(const Strategy& strategy, const Problem& problem, const std::string& why) {
  EXPECT_NE(why.find(strategy.name), std::string::npos) << why;
  EXPECT_NE(why.find("use strategy"), std::string::npos) << why;
  try {
    strategy.plan(problem, Direction::kForward, 0);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
  }
}

TEST(PlanAttention, EveryStrategyEqualsNaiveAttention) {
  const auto strategies = parallel::strategies();
  const auto layouts = parallel::layout_kinds();
  const std::vector<int> sizes{
      static_cast<int>(strategies.size()), static_cast<int>(layouts.size()),    9, 6,
      static_cast<int>(std::size(kHeads)), static_cast<int>(std::size(kMasks)), 4, 3};
  uint64_t seed = 0;
  std::map<std::string_view, int> run;  // cases of a strategy that it did not refuse
  for (const Case& c : cases_of(sizes)) {
    const Strategy& strategy = strategies[static_cast<size_t>(c[0])];
    const LayoutKind& kind = layouts[static_cast<size_t>(c[1])];
    const int ranks = c[2] + 1;
    const int64_t tokens = tokens_of(c[3], ranks);
    const Heads& h = kHeads[c[4]];
    const MaskCase& mask = kMasks[c[5]];
    // The others do not look at nodes or ranges of heads.
    const bool two_levels = strategy.name == "double_ring" || strategy.name == "usp";
    if (full_coverage() && !two_levels && c[6] > 0) continue;
    if (full_coverage() && strategy.name != "all_gather" && c[7] > 0) continue;
    const Documents documents =
        mask.packed ? random_documents(tokens, 11, ++seed) : Documents::whole(tokens);
    const TokenLayout layout = kind.of_sample(documents, mask.mask, ranks, {.row_price = 0});
    const Problem problem{
        layout,
        documents,
        mask.mask,
        HeadShape{.q_heads = h.q, .kv_heads = h.kv, .head_dim = 3, .value_dim = 2},
        ranks_per_node(ranks, c[6]),
        c[7]};
    SCOPED_TRACE(absl::StrCat(std::string(strategy.name), ", ", std::string(kind.name), ", ", ranks,
                              " ranks, ", problem.ranks_per_node, " per node, ",
                              problem.gather_heads, " heads at once, ", tokens, " tokens, heads ",
                              h.q, "/", h.kv, ", ", mask.name));
    if (const auto why = strategy.refusal(problem)) {
      expect_refusal(strategy, problem, *why);
      continue;
    }
    ++run[strategy.name];
    const AttentionTruth truth = attention_truth(documents, mask.mask, problem.heads, ++seed);
    ASSERT_NO_THROW(verify_attention(
        problem,
        [&](Direction direction, int rank) { return strategy.plan(problem, direction, rank); },
        truth, ++seed));
  }
  for (const Strategy& strategy : strategies) EXPECT_GT(run[strategy.name], 0) << strategy.name;
}

TEST(PlanAttention, DoubleRingHasTwoLevels) {
  const HeadShape heads{.q_heads = 4, .kv_heads = 2, .head_dim = 3, .value_dim = 2};
  for (const auto& [ranks, per_node] : {std::pair(4, 2), {6, 2}, {6, 3}, {8, 2}, {8, 4}, {9, 3}}) {
    for (const LayoutKind& kind : parallel::layout_kinds()) {
      SCOPED_TRACE(
          absl::StrCat(ranks, " ranks, ", per_node, " per node, ", std::string(kind.name)));
      const Documents documents = random_documents(61, 17, 3);
      const TokenLayout layout = kind.of_sample(documents, {true, 0}, ranks, {.row_price = 0});
      const Problem problem{layout, documents, {true, 0}, heads, per_node};
      const AttentionTruth truth = attention_truth(documents, problem.mask, heads, 5);
      for (uint64_t seed = 0; seed < 5; ++seed) {
        ASSERT_NO_THROW(verify_attention(
            problem,
            [&](Direction direction, int rank) {
              return plan_double_ring(problem, direction, rank);
            },
            truth, seed));
      }
    }
  }
}

TEST(PlanAttention, DoubleRingRefusesNodesThatDoNotDivide) {
  const TokenLayout layout = TokenLayout::zigzag(64, 6);
  const Documents documents = Documents::whole(64);
  const Problem problem{layout, documents, {}, {}, 4};
  const auto refusal = parallel::strategy("double_ring").refusal(problem);
  ASSERT_TRUE(refusal.has_value());
  EXPECT_NE(refusal->find("6 ranks"), std::string::npos) << *refusal;
  EXPECT_NE(refusal->find("use strategy ring"), std::string::npos) << *refusal;
  try {
    plan_double_ring(problem, Direction::kForward, 0);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
  }
}

TEST(PlanAttention, UnknownStrategyNamesTheKnown) {
  try {
    parallel::strategy("spiral");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    const std::string message = error.what();
    EXPECT_NE(message.find("spiral"), std::string::npos);
    for (const Strategy& strategy : parallel::strategies()) {
      EXPECT_NE(message.find(strategy.name), std::string::npos) << message;
    }
  }
}

TEST(PlanAttention, PlansAreReproducible) {
  const TokenLayout layout = TokenLayout::zigzag(61, 4);
  const Documents documents = random_documents(61, 9, 1);
  const Problem problem{layout, documents, {true, 0}, {.q_heads = 6, .kv_heads = 3}, 2};
  for (const Strategy& strategy : parallel::strategies()) {
    if (strategy.refusal(problem)) continue;
    for (Direction direction : {Direction::kForward, Direction::kBackward}) {
      EXPECT_EQ(strategy.plan(problem, direction, 1), strategy.plan(problem, direction, 1));
      EXPECT_NE(strategy.plan(problem, direction, 1), strategy.plan(problem, direction, 2));
    }
  }
}

TEST(Covering, PairwiseCasesHoldEveryPair) {
  const std::vector<int> sizes{3, 3, 9, 6, 5, 7, 3};
  const std::vector<Case> cases = pairwise_cases(sizes);
  for (size_t a = 0; a < sizes.size(); ++a) {
    for (size_t b = a + 1; b < sizes.size(); ++b) {
      std::set<std::pair<int, int>> seen;
      for (const Case& c : cases) seen.insert({c[a], c[b]});
      EXPECT_EQ(seen.size(), static_cast<size_t>(sizes[a] * sizes[b]));
    }
  }
}

}  // namespace
}  // namespace longhaul::test
