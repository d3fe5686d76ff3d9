#include "parallel/plan/chain.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "kernels/core/error.h"

namespace longhaul::parallel {

namespace {

struct End {
  int step, due;
};
using Ends = std::map<std::pair<int, int>, std::vector<End>>;  // by sender and receiver, in order

}  // namespace

int64_t longest_chain(std::span<const Plan> plans) {
  // [rank][step]: messages that come one after the other before the step begins; the last is the
  // plan's end.
  std::vector<std::vector<int64_t>> before;
  Ends sends, receives;
  for (int rank = 0; rank < static_cast<int>(plans.size()); ++rank) {
    const Plan& plan = plans[static_cast<size_t>(rank)];
    before.emplace_back(plan.steps.size() + 1);
    for (size_t s = 0; s < plan.steps.size(); ++s) {
      for (const Transfer& t : plan.steps[s].transfers) {
        const std::pair<int, int> pair = t.send ? std::pair(rank, t.peer) : std::pair(t.peer, rank);
        (t.send ? sends : receives)[pair].push_back({static_cast<int>(s), t.done_by});
      }
    }
  }
  const auto at = [&](int rank, int step) -> int64_t& {
    return before[static_cast<size_t>(rank)][static_cast<size_t>(step)];
  };
  // Relaxation: as many rounds as the chain is long, and one more.
  for (bool changed = true; std::exchange(changed, false);) {
    const auto raise = [&changed](int64_t& value, int64_t to) {
      changed |= to > value;
      value = std::max(value, to);
    };
    for (std::vector<int64_t>& steps : before) {
      for (size_t s = 1; s < steps.size(); ++s) raise(steps[s], steps[s - 1]);
    }
    for (const auto& [pair, sent] : sends) {
      const auto [from, to] = pair;
      const std::vector<End>& received = receives[pair];
      LONGHAUL_CHECK(sent.size() == received.size(), "every send has its receive");
      for (size_t i = 0; i < sent.size(); ++i) {
        const int64_t done =
            std::max(at(from, sent[i].step), at(to, received[i].step)) + (from == to ? 0 : 1);
        raise(at(from, sent[i].due), done);
        raise(at(to, received[i].due), done);
      }
    }
  }
  int64_t longest = 0;
  for (const std::vector<int64_t>& steps : before) longest = std::max(longest, steps.back());
  return longest;
}

}  // namespace longhaul::parallel
