// Choices on clusters where the formulas of parallel/ALGORITHMS.md say who wins.
#include "parallel/cost/choose.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

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
Cluster bandwidth_bound(DType dtype = DType::kBF16, int64_t head_dim = kDim) {
  Cluster cluster = free_cluster(kAlmostFree, dtype, head_dim);
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
  int64_t document = 0;  // tokens of each; 0: one document
  int64_t gather_heads = 0;
  std::string layout = "zigzag";
  DType dtype = DType::kBF16;
};
Choice chosen(const Case& c, Direction direction, const Cluster& cluster, bool in_place = false) {
  const int64_t tokens = c.rows * c.ranks;
  const TokenLayout layout = layout_kind(c.layout).make(tokens, c.ranks);
  std::vector<int64_t> begins{0};
  while (c.document > 0 && begins.back() + c.document < tokens) {
    begins.push_back(begins.back() + c.document);
  }
  const Documents documents(tokens, begins);
  const int per_node = c.per_node == 0 ? c.ranks : c.per_node;
  const Problem problem{layout, documents, c.mask, c.heads, per_node, c.gather_heads};
  return choose(problem, direction, c.dtype, cluster, nodes_in_order(c.ranks, per_node), in_place);
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

TEST(Choose, GroupCastWinsForPackedDocuments) {
  // Documents of half a chunk: some straddle two ranks.
  for (Direction direction : {Direction::kForward, Direction::kBackward}) {
    const Choice choice =
        chosen({.ranks = 8, .heads = shape(8, 8), .document = 19}, direction, bandwidth_bound());
    EXPECT_EQ(choice.winner().strategy, "group_cast") << choice.why;
    EXPECT_LT(choice.winner().received_mean, of(choice, "ring").received_mean / 8);
  }
}

// A ring's backward receives K (d+e) (b+g) for each row, query_ring's H ((d+e) b + d g + 2 g).
// Which is less turns on K/H, (2b+g)/(2b+2g) for d = e but for the statistics; kv heads that divide
// query heads are all of them or half of them at most, so the widths lead across the line here.
TEST(Choose, QueriesTravelInBackwardWhereTheyAreLess) {
  struct Line {
    DType dtype;
    int64_t heads, kv_heads, dim, value_dim;
    bool queries_are_less;
  };
  for (const Line& line :
       {// K = H: (d+e) g against d g + 2 g, at e = 2.
        Line{DType::kBF16, 1, 1, 16, 3, true}, Line{DType::kBF16, 1, 1, 16, 1, false},
        Line{DType::kF32, 1, 1, 16, 3, true}, Line{DType::kF32, 1, 1, 16, 1, false},
        Line{DType::kF32, 8, 8, 64, 64, true}, Line{DType::kBF16, 8, 8, 64, 64, true},
        // K = H/2 is below 2/3, and for bf16 the line is at e = 3 d + 8.
        Line{DType::kBF16, 8, 4, 64, 64, false}, Line{DType::kBF16, 2, 1, 4, 21, true},
        Line{DType::kBF16, 2, 1, 4, 19, false},
        // In f32 keys and values are always less.
        Line{DType::kF32, 8, 4, 64, 64, false}, Line{DType::kF32, 2, 1, 4, 400, false}}) {
    const HeadShape heads{line.heads, line.kv_heads, line.dim, line.value_dim};
    const Case full{.heads = heads, .mask = {.causal = false}, .dtype = line.dtype};
    const Choice choice = chosen(full, Direction::kBackward, bandwidth_bound(line.dtype, line.dim));
    const double b = line.dtype == DType::kBF16 ? 2 : 4, g = 4;
    const auto h = static_cast<double>(line.heads), k = static_cast<double>(line.kv_heads);
    const auto d = static_cast<double>(line.dim), e = static_cast<double>(line.value_dim);
    EXPECT_EQ(of(choice, "ring").received_mean, 3 * kRows * k * (d + e) * (b + g));
    EXPECT_EQ(of(choice, "query_ring").received_mean,
              3 * kRows * h * ((d + e) * b + d * g + 2 * g));
    EXPECT_EQ(of(choice, "query_ring").seconds < of(choice, "ring").seconds, line.queries_are_less)
        << line.heads << "/" << line.kv_heads << " of " << line.dim << ", " << line.value_dim;
    // One head leaves nothing to exchange for rows, so it is one of the two.
    if (line.heads == 1) {
      EXPECT_EQ(choice.winner().strategy, line.queries_are_less ? "query_ring" : "ring")
          << choice.why;
    }
  }
}

// Keys that are read where they lie are no reason to move queries.
TEST(Choose, ReadingInPlaceTakesTheKeysOffTheScales) {
  const Case full{.heads = {1, 1, 16, 16}, .mask = {.causal = false}};
  const Choice moved = chosen(full, Direction::kBackward, bandwidth_bound());
  const Choice read = chosen(full, Direction::kBackward, bandwidth_bound(), true);
  EXPECT_EQ(moved.winner().strategy, "query_ring") << moved.why;
  EXPECT_NE(read.winner().strategy, "query_ring") << read.why;
  EXPECT_EQ(of(read, "query_ring").in_place_mean, 0);
  EXPECT_LT(read.winner().seconds, moved.winner().seconds);
}

// Where only starting a message takes time, a chain of hops pays for each.
TEST(Choose, OneGatherWinsWhereLatencyIsAll) {
  Cluster cluster = free_cluster(kAlmostFree, DType::kBF16, kDim);
  cluster.within_node = Link{.seconds_per_message = 1e-5,
                             .bytes_per_second = std::numeric_limits<double>::infinity()};
  const Case small{.ranks = 8, .heads = shape(4, 4), .rows = 16, .gather_heads = 4};
  const Choice forward = chosen(small, Direction::kForward, cluster);
  EXPECT_EQ(forward.winner().strategy, "all_gather") << forward.why;
  EXPECT_NEAR(of(forward, "all_gather").seconds, 1e-5, 1e-9);
  EXPECT_NEAR(of(forward, "ring").seconds, 7e-5, 1e-9);
  EXPECT_NEAR(of(forward, "ulysses").seconds, 2e-5, 1e-9);  // there and back
  const Choice backward = chosen(small, Direction::kBackward, cluster);
  EXPECT_NEAR(of(backward, "all_gather").seconds, 2e-5, 1e-9);
  EXPECT_NEAR(of(backward, "ring").seconds, 9e-5, 1e-9);  // P + 1 steps
  EXPECT_NEAR(backward.winner().seconds, 2e-5, 1e-9);
}

// Nodes far apart: strategies with two levels send least between them. With as many kv heads as
// ranks on a node they send equally much there, and usp is done in fewer steps; with fewer kv heads
// its ranks need the same keys, and double_ring sends each once.
TEST(Choose, TwoLevelsWinWhereNodesAreFarApart) {
  for (const auto& [kv_heads, winner] : {std::pair(8, "usp"), {1, "double_ring"}}) {
    for (Direction direction : {Direction::kForward, Direction::kBackward}) {
      Cluster cluster = bandwidth_bound();
      cluster.within_node = Link{.seconds_per_message = 1e-6, .bytes_per_second = 1e11};
      const Case nodes{.ranks = 8, .heads = shape(32, kv_heads), .per_node = 4};
      const Choice choice = chosen(nodes, direction, cluster);
      for (const char* flat : {"ring", "all_gather", "query_ring"}) {
        EXPECT_LT(of(choice, "usp").seconds, of(choice, flat).seconds) << flat;
        EXPECT_LT(of(choice, "double_ring").seconds, of(choice, flat).seconds) << flat;
      }
      EXPECT_EQ(choice.winner().strategy, winner) << choice.why;
    }
  }
}

// Stripes of all ranks gathered on one are a band for each pair of stripes and document.
TEST(Choose, PassesOverStrategiesWhosePlansTakeLong) {
  Case packed{.ranks = 32, .heads = shape(32, 32), .rows = 32 * 128, .document = 32 * 32};
  // So fast is the exchange that nothing else counts.
  const Cluster cluster = bandwidth_bound();
  packed.layout = "striped";
  const Choice striped = chosen(packed, Direction::kForward, cluster);
  for (const char* name : {"ulysses", "usp"}) {
    const Candidate& gathered = of(striped, name);
    EXPECT_GT(gathered.bands, kMostBands);
    EXPECT_GT(gathered.planning, 0);
    EXPECT_THAT(gathered.refusal, HasSubstr(absl::StrCat("auto passes over ", name)));
    EXPECT_EQ(gathered.seconds, 0) << "nobody simulates it";
  }
  EXPECT_FALSE(of(striped, "ring").refused());
  EXPECT_LT(of(striped, "ring").bands, kMostBands);
  packed.layout = "zigzag";
  const Choice zigzag = chosen(packed, Direction::kForward, cluster);
  EXPECT_FALSE(of(zigzag, "ulysses").refused());
  EXPECT_LT(of(zigzag, "ulysses").bands, 1000);
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

// Named, it is about all ranks of a job; priced here, it would be about those of a sample.
TEST(Choose, PassesOverWhatIsOnlyTakenByName) {
  const Choice choice =
      chosen({.ranks = 4, .heads = shape(8, 8)}, Direction::kForward, bandwidth_bound());
  int passed_over = 0;
  for (const Strategy& strategy : strategies()) {
    const Candidate& candidate = of(choice, std::string(strategy.name));
    if (strategy.only_by_name.empty()) continue;
    ++passed_over;
    EXPECT_TRUE(candidate.refused());
    EXPECT_THAT(candidate.refusal, HasSubstr("name it in parallel.strategy"));
  }
  EXPECT_TRUE(of(choice, "disaggregated").refused());
  EXPECT_GT(passed_over, 0);
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
