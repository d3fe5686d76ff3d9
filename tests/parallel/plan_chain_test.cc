// The longest chain of messages, against what is known of the algorithms.
#include "parallel/plan/chain.h"

#include <gtest/gtest.h>

#include "parallel/plan/scan.h"
#include "parallel/plan/strategy.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::Documents;
using parallel::Plan;
using parallel::TokenLayout;

constexpr int64_t kHeads = 4;

int64_t scan_chain(std::string_view method, const TokenLayout& layout, Direction direction) {
  std::vector<Plan> plans;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    plans.push_back(parallel::scan_method(method).plan(layout, kHeads, direction, rank));
  }
  return parallel::longest_chain(plans);
}

int64_t softmax_chain(std::string_view strategy, const TokenLayout& layout, Direction direction) {
  const Documents documents = Documents::whole(layout.tokens());
  std::vector<Plan> plans;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    plans.push_back(parallel::strategy(strategy).plan({.layout = layout,
                                                       .documents = documents,
                                                       .mask = {},
                                                       .heads = {kHeads, kHeads, 8, 8},
                                                       .gather_heads = kHeads},
                                                      direction, rank));
  }
  return parallel::longest_chain(plans);
}

TEST(LongestChain, NoMessagesNoChain) {
  EXPECT_EQ(parallel::longest_chain({}), 0);
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    EXPECT_EQ(scan_chain(method.name, TokenLayout::contiguous(10, 1), Direction::kForward), 0);
  }
  EXPECT_EQ(softmax_chain("ring", TokenLayout::zigzag(10, 1), Direction::kForward), 0);
}

TEST(LongestChain, OfScans) {
  for (int ranks = 2; ranks <= 9; ++ranks) {
    const TokenLayout contiguous = TokenLayout::contiguous(64, ranks),
                      zigzag = TokenLayout::zigzag(64, ranks);
    for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
      EXPECT_EQ(scan_chain("all_gather", contiguous, direction), 1);
      EXPECT_EQ(scan_chain("all_gather", zigzag, direction), 1);
      // To the last rank, and back.
      EXPECT_EQ(scan_chain("ring", contiguous, direction), ranks - 1);
      EXPECT_EQ(scan_chain("ring", zigzag, direction), 2 * (ranks - 1));
      // The last block of heads leaves the first rank after the others.
      const int64_t blocks = std::min<int64_t>(kHeads, ranks);
      EXPECT_EQ(scan_chain("pipelined", contiguous, direction), ranks - 1 + blocks - 1);
    }
  }
}

TEST(LongestChain, OfSoftmaxStrategies) {
  for (int ranks = 2; ranks <= 6; ++ranks) {
    const TokenLayout layout = TokenLayout::zigzag(64, ranks);
    EXPECT_EQ(softmax_chain("ring", layout, Direction::kForward), ranks - 1);
    // All at once; results stay.
    EXPECT_EQ(softmax_chain("all_gather", layout, Direction::kForward), 1);
  }
}

}  // namespace
}  // namespace longhaul::test
