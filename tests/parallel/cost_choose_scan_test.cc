// Choices of how states are composed, on clusters where the formulas of parallel/ALGORITHMS.md say
// who wins.
#include "parallel/cost/choose_scan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {
namespace {

using kernels::StateDecay;

constexpr int64_t kRows = 64, kHeads = 16, kDim = 8;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Case {
  int ranks = 8;
  Link link;
  double seconds_per_token = 0;  // of a head; backward takes twice as long
  StateDecay decay = StateDecay::kScalar;
  double seconds_between_polls = 0;
  std::string layout = "contiguous";
  int64_t heads = kHeads;
};
ScanChoice chosen(const Case& c) {
  const HeadShape heads{.q_heads = c.heads,
                        .kv_heads = c.heads,
                        .head_dim = kDim,
                        .value_dim = kDim,
                        .state_decay = c.decay};
  Cluster cluster{.within_rank = Link{.bytes_per_second = kInfinity},
                  .within_node = c.link,
                  .between_nodes = c.link,
                  .memory_bytes_per_second = kInfinity,
                  .profiles = {}};
  cluster.linear_profiles = {{.dtype = DType::kF32,
                              .state_decay = c.decay,
                              .head_dim = kDim,
                              .value_dim = kDim,
                              .forward = c.seconds_per_token,
                              .backward = 2 * c.seconds_per_token}};
  const TokenLayout layout = layout_kind(c.layout).make(kRows * c.ranks, c.ranks);
  return choose_scan({.layout = layout,
                      .heads = heads,
                      .dtype = DType::kF32,
                      .seconds_between_polls = c.seconds_between_polls},
                     cluster, nodes_in_order(c.ranks, c.ranks));
}

const Candidate& of(const std::vector<Candidate>& candidates, const std::string& method) {
  const auto found = std::ranges::find(candidates, method, &Candidate::strategy);
  LONGHAUL_CHECK(found != candidates.end(), method);
  return *found;
}

constexpr double kSigma = kHeads * kDim * kDim * 4, kAlpha = kHeads * 4;  // bytes

// One message time, whatever the number of ranks, against one for each.
TEST(ChooseScan, LatencyCountsMessagesThatWaitForEachOther) {
  const Link slow{.seconds_per_message = 1e-3, .bytes_per_second = kInfinity};
  for (const int ranks : {2, 3, 5, 8}) {
    const ScanChoice choice = chosen({.ranks = ranks, .link = slow});
    int rounds = 0;
    while ((1 << rounds) < ranks - 1) ++rounds;
    for (const auto& candidates : choice.directions) {
      EXPECT_NEAR(of(candidates, "all_gather").seconds, 1e-3, 1e-12);
      EXPECT_NEAR(of(candidates, "ring").seconds, (ranks - 1) * 1e-3, 1e-12);
      EXPECT_NEAR(of(candidates, "doubling").seconds, (1 + rounds) * 1e-3, 1e-12);
      EXPECT_EQ(of(candidates, "ring").steps, ranks - 1);
    }
    EXPECT_EQ(choice.both.winner().strategy, "all_gather");
    EXPECT_NEAR(choice.both.winner().seconds, 2e-3, 1e-12);
    EXPECT_THAT(choice.both.why, testing::StartsWith("all_gather is "));
  }
}

// (P-1) states of a rank against a chain of P-1 that pipelines: less than two.
TEST(ChooseScan, BytesCountWhereTheyTakeTime) {
  const Link narrow{.bytes_per_second = 1e6};
  const ScanChoice choice = chosen({.ranks = 8, .link = narrow});
  for (const auto& candidates : choice.directions) {
    EXPECT_NEAR(of(candidates, "all_gather").seconds, 7 * (kSigma + kAlpha) / 1e6, 1e-12);
    EXPECT_NEAR(of(candidates, "ring").seconds, 7 * kSigma / 1e6, 1e-12);
    // B = 8 blocks, one on its way to each rank: (M - 2 + B) / B.
    EXPECT_NEAR(of(candidates, "pipelined").seconds, 14.0 / 8 * kSigma / 1e6, 1e-12);
    EXPECT_EQ(of(candidates, "all_gather").received_mean, 7 * (kSigma + kAlpha));
    EXPECT_EQ(of(candidates, "ring").received_max, kSigma);
  }
  EXPECT_EQ(choice.both.winner().strategy, "pipelined");
  EXPECT_TRUE(std::ranges::is_sorted(choice.both.candidates, {}, &Candidate::seconds));
}

// What travels while a rank computes on its own tokens is hidden; the delta rule has nothing to
// compute before it knows the states that enter.
TEST(ChooseScan, OnesOwnTokensHideWhatTravels) {
  const Link slow{.seconds_per_message = 1e-3, .bytes_per_second = kInfinity};
  const double computing = 5e-3, a_token = computing / (kRows * kHeads);
  const ScanChoice hidden = chosen({.link = slow, .seconds_per_token = a_token});
  EXPECT_NEAR(of(hidden.directions[0], "all_gather").seconds, computing, 1e-12);
  EXPECT_NEAR(of(hidden.directions[0], "all_gather").exposed, 0, 1e-12);
  EXPECT_NEAR(of(hidden.directions[0], "ring").seconds, 7e-3, 1e-12);  // what the last two share
  EXPECT_NEAR(of(hidden.directions[0], "ring").exposed, (1e-3 + 2e-3 + 2e-3) / 8, 1e-12);
  EXPECT_NEAR(of(hidden.directions[1], "ring").seconds, 2 * computing, 1e-12);
  const ScanChoice delta =
      chosen({.link = slow, .seconds_per_token = a_token, .decay = StateDecay::kDense});
  EXPECT_NEAR(of(delta.directions[0], "all_gather").seconds, computing + 1e-3, 1e-12);
  EXPECT_NEAR(of(delta.directions[0], "ring").seconds, computing + 7e-3, 1e-12);
}

// What a processor does for messages cannot be hidden behind its own computing.
TEST(ChooseScan, ProcessorsWorkIsNotHidden) {
  const Link copied{.bytes_per_second = 1e6, .processor_share = 1};
  const ScanChoice choice = chosen({.link = copied, .seconds_per_token = 1});
  // Each of a message's ends has half of its time.
  EXPECT_NEAR(of(choice.directions[0], "all_gather").exposed, 7 * (kSigma + kAlpha) / 1e6, 1e-9);
  EXPECT_NEAR(of(choice.directions[0], "ring").exposed, 7.0 / 8 * kSigma / 1e6, 1e-9);
}

// Each message of a chain waits for the kernel to look, as long as it computes.
TEST(ChooseScan, ChainsWaitForKernelsThatPoll) {
  const Link fast{.seconds_per_message = 1e-6, .bytes_per_second = kInfinity};
  const double a_token = 2e-3 / (kRows * kHeads);
  const ScanChoice choice =
      chosen({.link = fast, .seconds_per_token = a_token, .seconds_between_polls = 1e-3});
  EXPECT_NEAR(of(choice.directions[0], "all_gather").seconds, 2e-3, 1e-12);
  // Seven half milliseconds, but not after the kernel's end.
  EXPECT_NEAR(of(choice.directions[0], "ring").seconds, 7e-6 + 2e-3, 1e-12);
  EXPECT_EQ(choice.both.winner().strategy, "all_gather");
}

TEST(ChooseScan, EqualOnesKeepTheOrderOfTheTable) {
  const ScanChoice choice =
      chosen({.ranks = 1, .link = Link{.seconds_per_message = 1, .bytes_per_second = 1}});
  EXPECT_EQ(choice.both.winner().strategy, "all_gather");
  EXPECT_EQ(choice.both.winner().seconds, 0);
  EXPECT_EQ(choice.both.candidates.size(), scan_methods().size());
}

// What the plans move is what the predictions count, on every layout that can be scanned.
TEST(ChooseScan, BytesAreThoseOfThePlans) {
  for (const char* name : {"contiguous", "zigzag"}) {
    for (const int64_t heads : {1, 3, 16}) {
      const Case c{
          .ranks = 5, .link = Link{.bytes_per_second = 1e9}, .layout = name, .heads = heads};
      const ScanChoice choice = chosen(c);
      const TokenLayout layout = layout_kind(name).make(kRows * c.ranks, c.ranks);
      for (const ScanMethod& method : scan_methods()) {
        for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
          int64_t sum = 0;
          for (int r = 0; r < c.ranks; ++r) {
            sum += received_bytes(
                method.plan(layout, heads, direction, r), r,
                {.q_heads = heads, .kv_heads = heads, .head_dim = kDim, .value_dim = kDim},
                DType::kF32);
          }
          const Candidate& candidate =
              of(choice.directions[static_cast<size_t>(direction)], std::string(method.name));
          EXPECT_NEAR(candidate.received_mean * c.ranks, static_cast<double>(sum), 1e-6);
        }
      }
    }
  }
}

TEST(ChooseScan, LinksThatAreNotKnownAreNamed) {
  Cluster cluster;
  cluster.memory_bytes_per_second = 1e9;
  cluster.linear_profiles = {{.head_dim = kDim, .value_dim = kDim, .forward = 1, .backward = 1}};
  const TokenLayout layout = TokenLayout::contiguous(64, 2);
  try {
    choose_scan({.layout = layout, .heads = {.head_dim = kDim, .value_dim = kDim}}, cluster,
                {0, 1});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kConfig);
    EXPECT_THAT(error.what(), testing::HasSubstr("between_nodes"));
  }
}

}  // namespace
}  // namespace longhaul::parallel
