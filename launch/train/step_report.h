// What is known about a step, gathered over the ranks: for the step line and metrics.jsonl.
#pragma once

#include <cstdint>
#include <string>

#include "dist/group.h"

namespace longhaul::launch {

// One rank's part.
struct RankStep {
  double loss_sum = 0;
  double seconds = 0;         // of the step, as this rank saw it
  double waited_seconds = 0;  // of these, in which it could only wait for others
  double flops = 0;           // model FLOPs done
  double memory_peak_bytes = 0;
  double memory_plan_bytes = 0;
  bool stop_requested = false;
};

// The job's step; equal on all ranks.
struct StepReport {
  double loss_sum = 0;
  double seconds = 0;  // of the slowest rank
  double flops = 0;
  double exposed_communication = 0;  // mean share of the step spent waiting
  int slowest_rank = 0;              // the one that computed longest
  double memory_peak_bytes = 0;      // of the fullest rank
  double memory_plan_bytes = 0;      // of the rank with the largest plan
  bool stop_requested = false;       // by a signal to any rank
};

// Collective.
StepReport gather(dist::Group& world, const RankStep& mine);

}  // namespace longhaul::launch
