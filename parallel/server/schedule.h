// The scheduler of core attention disaggregation: which server computes which part of a sample's
// attention. After the idea of DistCA (Zhuang et al. 2025, section 4); the algorithm and what it
// guarantees: parallel/ALGORITHMS.md, "disaggregated".
#pragma once

#include <vector>

#include "parallel/plan/planners.h"

namespace longhaul::parallel {

struct Schedule {
  std::vector<PlacedTask> tasks;  // cover the mask exactly once
};

// A pure function of its arguments: every rank computes the same. Throws Error(kConfig) if the
// servers' buffers are too small, saying by how much.
Schedule schedule_tasks(const Problem& problem, Direction direction);

}  // namespace longhaul::parallel
