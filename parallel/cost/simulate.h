// How long plans take on a cluster: the meaning of a step (parallel/plan/plan.h) run on a clock
// instead of on data.
//
// A rank enters a step once its transfers due there are complete; it folds what has arrived,
// clears, packs what it sends and computes the step's tasks, one after the other. A transfer starts
// once both ends have started it and its ports are free. It takes alpha and bytes / beta. Of alpha,
// the share that a processor spends keeps the ports busy, once for each field, as the bytes do; the
// rest is on the way, and other messages go meanwhile (LogP's overhead and latency, Culler et al.
// 1993). A rank has a port in each direction for its node's ranks and one for other nodes (or its
// share of the node's adapters). Ports serve transfers in an order that is fixed before the clock
// runs: by the longest chain of steps and transfers before them, then the earliest due, then the
// distance of the ranks (so that an all-to-all is a sequence of shifts). Keys and values that are
// read in place are not transferred: their owner copies them once when it starts, and readers wait
// for that.
//
// Every time is a maximum of sums of durations (max-plus), so that a faster link or kernel never
// makes a prediction slower.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/cost/cluster.h"
#include "parallel/plan/plan.h"

namespace longhaul::parallel {

struct SimulationOptions {
  Direction direction = Direction::kForward;
  HeadShape heads;
  DType dtype = DType::kF32;
  std::vector<int> node_of;  // by rank; equal numbers: one node
  bool in_place = true;      // ranks of a node read each other's keys and values where they lie
};

struct RankTime {
  double seconds = 0;  // until the rank has done its last step
  // Of these: in attention's kernel; copying, folding and publishing; with nothing to do but wait.
  double computing = 0;
  double copying = 0;
  double waiting = 0;
  int64_t received_bytes = 0;  // by the plan, also what is read in place instead
  int64_t in_place_bytes = 0;  // the part that is read in place
  double pairs = 0;            // (query, key) pairs x heads computed
  // What communication costs this rank beyond its computing.
  double exposed() const { return copying + waiting; }
};

// plans: of all ranks. If they have tasks, the cluster must have a profile for dtype and head_dim;
// it must know the links between nodes if ranks are on several; throws Error(kConfig) if not.
// Throws Error(kInternal) for plans that do not fit each other.
std::vector<RankTime> simulate(std::span<const Plan> plans, const Cluster& cluster,
                               const SimulationOptions& options);

}  // namespace longhaul::parallel
