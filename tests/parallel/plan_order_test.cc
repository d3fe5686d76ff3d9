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

namespace longhaul::test {
namespace {

using parallel::Direction;
using parallel::Documents;
using parallel::Mask;
using parallel::Plan;
using parallel::Problem;
using parallel::TokenLayout;
using parallel::Transfer;

// What becomes one exchange. The executor starts neighbouring transfers of a step that are due
// together as one; a transport may make one of all that are started without a wait in between.
enum class Grouping { kByDueStep, kByStep, kUntilWait };

struct Exchange {
  std::vector<Transfer> transfers;
};

std::vector<Exchange> exchanges_of(const Plan& plan, Grouping grouping) {
  std::vector<Exchange> exchanges;
  std::vector<int> due;  // of everything started so far
  bool joins = false;    // whether the next transfer may join the last exchange
  for (int s = 0; s < static_cast<int>(plan.steps.size()); ++s) {
    const bool waits = std::count(due.begin(), due.end(), s) > 0;
    if (grouping != Grouping::kUntilWait || waits) joins = false;
    int last_due = -1;
    for (const Transfer& t : plan.steps[static_cast<size_t>(s)].transfers) {
      if (grouping == Grouping::kByDueStep && t.done_by != last_due) joins = false;
      if (!joins) exchanges.emplace_back();
      exchanges.back().transfers.push_back(t);
      joins = true;
      last_due = t.done_by;
      due.push_back(t.done_by);
    }
  }
  return exchanges;
}

// "" if every rank comes to its end, else who is left with what.
std::string stuck(const std::vector<Plan>& plans, Grouping grouping) {
  const auto ranks = plans.size();
  std::vector<std::vector<Exchange>> exchanges;
  for (const Plan& plan : plans) exchanges.push_back(exchanges_of(plan, grouping));

  std::vector<size_t> turn(ranks, 0);                  // the exchange of each rank that moves
  std::vector<size_t> open(ranks, 0);                  // messages of it that have not
  std::map<std::pair<int, int>, int> sends, receives;  // (from, to): at their turn, not moved
  const auto come_to = [&](size_t rank) {
    const auto me = static_cast<int>(rank);
    for (const Transfer& t : exchanges[rank][turn[rank]].transfers) {
      ++(t.send ? sends[{me, t.peer}] : receives[{t.peer, me}]);
      ++open[rank];
    }
  };
  for (size_t r = 0; r < ranks; ++r) {
    if (!exchanges[r].empty()) come_to(r);
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (auto& [pair, waiting] : sends) {
      const int both = std::min(waiting, receives[pair]);
      if (both == 0) continue;
      waiting -= both;
      receives[pair] -= both;
      open[static_cast<size_t>(pair.first)] -= static_cast<size_t>(both);
      open[static_cast<size_t>(pair.second)] -= static_cast<size_t>(both);
      moved = true;
    }
    for (size_t r = 0; r < ranks; ++r) {
      while (turn[r] < exchanges[r].size() && open[r] == 0) {
        moved = true;
        if (++turn[r] < exchanges[r].size()) come_to(r);
      }
    }
  }
  std::string text;
  for (size_t r = 0; r < ranks; ++r) {
    if (turn[r] == exchanges[r].size()) continue;
    absl::StrAppend(&text, "rank ", r, " in exchange ", turn[r], " of ", exchanges[r].size(), "; ");
  }
  return text;
}

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
    for (const int64_t tokens : {int64_t{ranks} - 1, int64_t{61}, int64_t{130}}) {
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
                  for (Grouping grouping :
                       {Grouping::kByDueStep, Grouping::kByStep, Grouping::kUntilWait}) {
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
