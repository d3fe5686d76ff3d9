#include "tests/parallel/plan_order.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"

namespace longhaul::test {

using parallel::Plan;
using parallel::Transfer;

namespace {

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

}  // namespace

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

}  // namespace longhaul::test
