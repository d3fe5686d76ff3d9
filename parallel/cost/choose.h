// The cheapest strategy for a problem, by simulation of all strategies' plans on a cluster.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/cost/cluster.h"
#include "parallel/cost/simulate.h"
#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

struct Candidate {
  std::string strategy;
  std::string refusal;       // why it cannot do the problem, or auto passes it over
  double planning = 0;       // seconds that rank 0's plan took to make, here and now
  int64_t bands = 0;         // segments of rank 0's plan; all below is 0 if refused
  double seconds = 0;        // of the slowest rank, predicted
  double exposed = 0;        // mean over ranks: seconds beyond computing (RankTime::exposed)
  double received_mean = 0;  // bytes of a rank
  int64_t received_max = 0;
  double in_place_mean = 0;  // of received_mean: read in place, not moved
  int steps = 0;             // of the longest plan
  double balance = 1;        // pairs computed: largest rank / mean
  bool refused() const { return !refusal.empty(); }
};

struct Choice {
  Direction direction = Direction::kForward;
  // By seconds, the cheapest first, then by the order of the table; refused ones last.
  std::vector<Candidate> candidates;
  std::string
      why;  // one sentence: "ring: the only one ...", "lightseq exposes 0.2 ms less than ..."
  const Candidate& winner() const { return candidates.front(); }
};

// A plan is made for each new sample, in a time that goes with its bands: 2^16 of them take some
// milliseconds and 5 MB. Strategies whose plans have more are passed over where others do with an
// eighth.
inline constexpr int64_t kMostBands = int64_t{1} << 16;
inline constexpr int64_t kTimesFewestBands = 8;

// Every strategy of the table that need not be asked for by name, on the same cluster. node_of: a
// node number for each rank. Deterministic, but for `planning`, which nothing depends on. Throws
// Error(kConfig) if all strategies refuse, naming the reasons.
Choice choose(const Problem& problem, Direction direction, DType dtype, const Cluster& cluster,
              const std::vector<int>& node_of, bool in_place);

// One strategy; also for one that is given.
Candidate predict(const Strategy& strategy, const Problem& problem, Direction direction,
                  DType dtype, const Cluster& cluster, const std::vector<int>& node_of,
                  bool in_place);

// Why the first of several is the cheapest, in one sentence. candidates: as in a Choice.
std::string reason(const std::vector<Candidate>& candidates);

// Consecutive ranks, `per_node` to a node: [0, 0, 1, 1] for 4 and 2.
std::vector<int> nodes_in_order(int ranks, int per_node);

}  // namespace longhaul::parallel
