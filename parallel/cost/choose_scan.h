// The cheapest way to compose the states of linear attention over ranks (parallel/plan/scan.h), by
// the simulation that chooses among the strategies of softmax attention.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "parallel/cost/choose.h"
#include "parallel/cost/cluster.h"
#include "parallel/plan/scan.h"

namespace longhaul::parallel {

// Of kernels on CPUs (kernels/core/context.h).
inline constexpr double kSecondsBetweenPolls = 1e-3;

struct ScanProblem {
  const TokenLayout& layout;  // the ranges of tokens that are scanned (scanned_runs())
  HeadShape heads;            // kv_heads: the model's heads; state_decay: of the kind
  DType dtype = DType::kF32;
  // How long a kernel computes before it lets messages go on: what a message that others wait for
  // loses at most. 0: they go on by themselves (GPUs).
  double seconds_between_polls = 0;
  // Heads that forget (parallel/plan/decayed_scan.h); empty: none.
  std::vector<bool> forgets{};
};

struct ScanChoice {
  // A candidate is a method, `strategy` its name, its figures the sums over a layer's forward and
  // backward; `steps` the most messages that wait for each other in one of them.
  Choice both;
  // By direction, in the order of the table.
  std::array<std::vector<Candidate>, 2> directions;
};

// Every method of the table. What a rank computes out of its own tokens alone hides what travels
// meanwhile, if states can be added afterwards (all but the delta rule); what its processor does
// for messages and compositions is never hidden. The cluster must have a profile of the kind's
// kernels. Deterministic. Throws Error(kConfig) for layouts that cannot be scanned, and links that
// are not known.
ScanChoice choose_scan(const ScanProblem& problem, const Cluster& cluster,
                       const std::vector<int>& node_of);

}  // namespace longhaul::parallel
