// Choices on clusters where the formulas of parallel/ALGORITHMS.md say who wins.
#include "parallel/cost/choose.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "tests/parallel/cost_cluster.h"

namespace longhaul::parallel {
namespace {

using test::free_cluster;
using testing::HasSubstr;

constexpr int64_t kRows = 64, kDim = 16;
constexpr double kAlmostFree = 1e-300;  // seconds a pair

HeadShape shape(int64_t heads, int64_t kv_heads) {
  return {.q_heads = heads, .kv_heads = kv_heads, .head_dim = kDim, .value_dim = kDim};
}

// Nothing but bytes takes time.
Cluster bandwidth_bound() {
  Cluster cluster = free_cluster(kAlmostFree, DType::kBF16, kDim);
  cluster.within_node = Link{.bytes_per_second = 1e9};
  cluster.between_nodes = Link{.bytes_per_second = 1e9};
  return cluster;
}

struct Case {
  int ranks = 4;
  HeadShape heads;
  Mask mask{.causal = true, .window = 0};
  int per_node = 0;  // 0: all
  int64_t rows = kRows;
};
Choice chosen(const Case& c, Direction direction, const Cluster& cluster, bool in_place = false) {
  const TokenLayout layout = TokenLayout::zigzag(c.rows * c.ranks, c.ranks);
  const Documents documents = Documents::whole(layout.tokens());
  const int per_node = c.per_node == 0 ? c.ranks : c.per_node;
  return choose({layout, documents, c.mask, c.heads, per_node}, direction, DType::kBF16, cluster,
                nodes_in_order(c.ranks, per_node), in_place);
}

const Candidate& of(const Choice& choice, const std::string& strategy) {
  const auto found = std::ranges::find(choice.candidates, strategy, &Candidate::strategy);
  LONGHAUL_CHECK(found != choice.candidates.end(), strategy);
  return *found;
}

TEST(Choose, BytesDecideBetweenRingAndUlyssesWhereOnlyBytesTakeTime) {
  int ring_wins = 0, ulysses_wins = 0;
  for (int ranks : {2, 4, 8}) {
    for (int64_t kv_heads : {1, 2, 4, 8, 16, 32}) {
      const Choice choice = chosen({.ranks = ranks, .heads = shape(32, kv_heads)},
                                   Direction::kForward, bandwidth_bound());
      const int64_t b = 2, g = 4, m = std::max<int64_t>(kv_heads, ranks);
      const double ring = static_cast<double>((ranks - 1) * kRows * kv_heads * 2 * kDim * b);
      const double ulysses = static_cast<double>(kRows * (ranks - 1)) / ranks *
                             static_cast<double>(32 * (kDim * b + kDim * g + g) + m * 2 * kDim * b);
      EXPECT_EQ(of(choice, "ring").received_mean, ring);
      EXPECT_EQ(of(choice, "ulysses").received_mean, ulysses);
      EXPECT_EQ(of(choice, "ring").seconds < of(choice, "ulysses").seconds, ring < ulysses)
          << ranks << " ranks, " << kv_heads << " kv heads";
      EXPECT_NEAR(of(choice, "ring").seconds, ring / 1e9, 1e-12);
      (ring < ulysses ? ring_wins : ulysses_wins) += 1;
      EXPECT_LE(choice.winner().seconds, std::min(ring, ulysses) / 1e9 * (1 + 1e-9));
    }
  }
  EXPECT_GT(ring_wins, 3);
  EXPECT_GT(ulysses_wins, 3);
}

TEST(Choose, FewHeadsLeaveRanksOfUlyssesIdle) {
  Cluster cluster = free_cluster(1e-6, DType::kBF16, kDim);
  const Choice choice = chosen({.ranks = 8, .heads = shape(4, 4)}, Direction::kForward, cluster);
  EXPECT_LT(of(choice, "ring").seconds, 0.51 * of(choice, "ulysses").seconds);
  EXPECT_DOUBLE_EQ(of(choice, "ulysses").balance, 2);
  EXPECT_NEAR(of(choice, "ring").balance, 1, 0.01);
}

TEST(Choose, DoubleRingWinsOverRingWhereNodesAreFarApart) {
  for (Direction direction : {Direction::kForward, Direction::kBackward}) {
    Cluster cluster = bandwidth_bound();
    const Case nodes{.ranks = 8, .heads = shape(8, 8), .per_node = 4};
    cluster.between_nodes->bytes_per_second = 1e8;
    const Choice far = chosen(nodes, direction, cluster);
    EXPECT_LT(of(far, "double_ring").seconds, of(far, "ring").seconds);
    cluster.adapters_per_node = 1;  // four ranks share it: four crossings instead of seven
    const Choice shared = chosen(nodes, direction, cluster);
    EXPECT_LT(of(shared, "double_ring").seconds, of(shared, "ring").seconds);
  }
}

TEST(Choose, InPlaceReadingMakesKeysFree) {
  Cluster cluster = bandwidth_bound();
  const Case many{.ranks = 4, .heads = shape(32, 32)};
  EXPECT_LT(of(chosen(many, Direction::kForward, cluster), "ulysses").seconds,
            of(chosen(many, Direction::kForward, cluster), "ring").seconds);
  const Choice read = chosen(many, Direction::kForward, cluster, true);
  EXPECT_LT(of(read, "ring").seconds, of(read, "ulysses").seconds);
  EXPECT_EQ(of(read, "ring").in_place_mean, of(read, "ring").received_mean);
}

TEST(Choose, GroupCastMovesOnlyWhatAWindowNeeds) {
  // A window of a quarter of a rank's rows: chunks need a part of the chunk before.
  for (Direction direction : {Direction::kForward, Direction::kBackward}) {
    const Case window{
        .ranks = 8, .heads = shape(8, 8), .mask = {.causal = true, .window = kRows / 4}};
    const Choice choice = chosen(window, direction, bandwidth_bound());
    EXPECT_LT(of(choice, "group_cast").received_max, of(choice, "ring").received_max / 4);
    EXPECT_LT(of(choice, "group_cast").seconds, of(choice, "ring").seconds / 4);
  }
}

TEST(Choose, RefusedStrategiesStandLastWithTheirReason) {
  const Choice choice = chosen({.ranks = 8, .heads = shape(8, 8), .per_node = 3},
                               Direction::kForward, bandwidth_bound());
  const Candidate& refused = of(choice, "double_ring");
  EXPECT_TRUE(refused.refused());
  EXPECT_THAT(refused.refusal, HasSubstr("double_ring"));
  EXPECT_FALSE(choice.winner().refused());
  bool seen = false;
  for (const Candidate& candidate : choice.candidates) {
    EXPECT_FALSE(seen && !candidate.refused());
    seen = seen || candidate.refused();
  }
  EXPECT_EQ(choice.candidates.size(), strategies().size());
}

TEST(Choose, OneRankHasAChoiceWithoutLinks) {
  Cluster cluster = free_cluster(1e-6, DType::kBF16, kDim);
  cluster.within_node.reset();
  cluster.between_nodes.reset();
  const Choice choice = chosen({.ranks = 1, .heads = shape(4, 2)}, Direction::kBackward, cluster);
  EXPECT_EQ(choice.winner().received_max, 0);
  EXPECT_NEAR(choice.winner().seconds, 4 * kRows * (kRows + 1) / 2 * 1e-6, 1e-9);
}

TEST(Choose, SaysWhyInOneSentence) {
  const Choice choice =
      chosen({.ranks = 4, .heads = shape(32, 32)}, Direction::kForward, bandwidth_bound());
  const Candidate& first = choice.candidates[0];
  // The next that is slower: strategies may make the same plan.
  const Candidate& second =
      *std::find_if(choice.candidates.begin(), choice.candidates.end(),
                    [&](const Candidate& c) { return c.seconds > first.seconds * 1.001; });
  EXPECT_THAT(choice.why, HasSubstr(first.strategy));
  EXPECT_THAT(choice.why, HasSubstr(second.strategy));
  EXPECT_THAT(choice.why, HasSubstr("receives "));
  EXPECT_LE(first.seconds, second.seconds);
  // The same again: deterministic.
  EXPECT_EQ(
      chosen({.ranks = 4, .heads = shape(32, 32)}, Direction::kForward, bandwidth_bound()).why,
      choice.why);
}

}  // namespace
}  // namespace longhaul::parallel
