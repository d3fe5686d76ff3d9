// Over a transport that takes a rank's exchanges one after the other, in the order of their start,
// and completes one only when all its messages have moved (NCCL: dist/group.h, "Host and device"),
// no plan may stop for ever. Proved from the plans alone, without ranks.
//
// A message moves once the exchanges of both its ends have come to their turn; when it moves does
// not depend on anything else, so letting move what can until nothing does finds out whether
// everything does.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "parallel/plan/planners.h"
#include "tests/parallel/attention_world.h"
#include "tests/parallel/plan_order.h"
#include "tests/slow_build.h"

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::Documents;
using parallel::Mask;
using parallel::Plan;
using parallel::Problem;
using parallel::TokenLayout;
using parallel::Transfer;

// Whether its plans depend on the ranks of a node.
bool looks_at_nodes(const parallel::Strategy& strategy) {
  return strategy.name == "double_ring" || strategy.name == "usp";
}

std::vector<Plan> plans_of(const parallel::Strategy& strategy, const Problem& problem,
                           Direction direction) {
  std::vector<Plan> plans;
  for (int r = 0; r < problem.layout.ranks(); ++r) {
    plans.push_back(strategy.plan(problem, direction, r));
  }
  return plans;
}

TEST(PlanOrder, ExchangesInTheOrderOfTheirStartCannotDeadlock) {
  std::map<std::string_view, int> proved;
  for (int ranks = 1; ranks <= 9; ++ranks) {
    for (const int64_t tokens : some_of<int64_t>({61, ranks - 1, 130}, 3)) {
      for (const parallel::LayoutKind& kind : parallel::layout_kinds()) {
        const TokenLayout layout = kind.make(tokens, ranks);
        for (const Documents& documents : {Documents::whole(tokens), random_documents(tokens, 4, 3),
                                           random_documents(tokens, 20, 7)}) {
          for (const Mask& mask : {Mask{true, 0}, Mask{false, 0}, Mask{true, 9}}) {
            for (int per_node = 1; per_node <= ranks; ++per_node) {
              const Problem problem{layout,
                                    documents,
                                    mask,
                                    {.q_heads = 6, .kv_heads = 3, .head_dim = 4, .value_dim = 4},
                                    per_node};
              for (const parallel::Strategy& strategy : parallel::strategies()) {
                if (strategy.refusal(problem)) continue;
                if (per_node > 1 && !looks_at_nodes(strategy)) continue;
                for (Direction direction : {Direction::kForward, Direction::kBackward}) {
                  const std::vector<Plan> plans = plans_of(strategy, problem, direction);
                  for (Grouping grouping : kGroupings) {
                    ASSERT_EQ(stuck(plans, grouping), "")
                        << strategy.name << ", " << kind.name << ", " << ranks << " ranks, "
                        << per_node << " per node, " << tokens << " tokens, " << documents.count()
                        << " documents, causal " << mask.causal << ", window " << mask.window
                        << (direction == Direction::kForward ? ", forward" : ", backward")
                        << ", grouping " << static_cast<int>(grouping);
                  }
                }
                ++proved[strategy.name];
              }
            }
          }
        }
      }
    }
  }
  for (const parallel::Strategy& strategy : parallel::strategies()) {
    EXPECT_GT(proved[strategy.name], 100) << strategy.name;
  }
}

// The proof can fail: plans that finish under rendezvous, where each message moves by itself, and
// do not here.
TEST(PlanOrder, FindsOrdersThatDoNotFit) {
  const auto transfer = [](bool send, int peer, int done_by) {
    Transfer t;
    t.send = send;
    t.peer = peer;
    t.done_by = done_by;
    return t;
  };
  // Two messages from 0 to 1 and back, started in opposite order and due at the end.
  std::vector<Plan> plans(2);
  for (int r = 0; r < 2; ++r) {
    Plan& plan = plans[static_cast<size_t>(r)];
    plan.steps.resize(2);
    plan.steps[0].transfers.push_back(transfer(r == 0, 1 - r, 2));
    plan.steps[1].transfers.push_back(transfer(r != 0, 1 - r, 2));
  }
  EXPECT_EQ(stuck(plans, Grouping::kByStep), "");
  std::swap(plans[1].steps[0].transfers, plans[1].steps[1].transfers);
  EXPECT_NE(stuck(plans, Grouping::kByStep), "");
  EXPECT_EQ(stuck(plans, Grouping::kUntilWait), "");  // one exchange: all move together
  plans[1].steps[1].transfers.clear();
  EXPECT_NE(stuck(plans, Grouping::kUntilWait), "");  // one end only
  // Rank 0's first exchange ends only after rank 2 has heard of rank 1, and rank 1 wants to hear of
  // rank 0's second before.
  plans.assign(3, Plan{});
  for (Plan& plan : plans) plan.steps.resize(3);
  plans[0].steps[0].transfers = {transfer(true, 1, 3), transfer(true, 2, 3)};
  plans[0].steps[1].transfers = {transfer(true, 1, 3)};
  plans[1].steps[0].transfers = {transfer(false, 0, 1)};
  plans[1].steps[1].transfers = {transfer(false, 0, 2)};
  plans[1].steps[2].transfers = {transfer(true, 2, 3)};
  plans[2].steps[0].transfers = {transfer(false, 1, 1)};
  plans[2].steps[1].transfers = {transfer(false, 0, 2)};
  EXPECT_NE(stuck(plans, Grouping::kByStep), "");
  std::swap(plans[2].steps[0], plans[2].steps[1]);
  EXPECT_EQ(stuck(plans, Grouping::kByStep), "");
}

}  // namespace
}  // namespace longhaul::test
