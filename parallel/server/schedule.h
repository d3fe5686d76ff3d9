// The scheduler of core attention disaggregation: which server computes which part of a sample's
// attention. After the idea of DistCA (Zhuang et al. 2025, section 4); the algorithm and what it
// guarantees: parallel/ALGORITHMS.md, "Core attention disaggregation".
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/plan/planners.h"

namespace longhaul::parallel {

struct Schedule {
  std::vector<PlacedTask> tasks;  // cover the mask exactly once
  // By server: seconds by the profile, or pairs of all heads.
  std::vector<double> load;
  double tile = 0;  // the same of the costliest tile x tile pairs of all query heads
  int64_t moves = 0;
  int rounds = 1;  // of the tasks: nano_batches, or what buffers leave room for
  // Memory kept the most loaded server above the bound: otherwise always
  //     max(load) <= (1 + imbalance) mean(load) + tile.
  bool limited_by_memory = false;
  std::vector<int64_t> memory;  // by rank: upper bound of its memory for others' rows
  int64_t most_counted = 0;     // the most that was counted for a rank while tasks moved
  std::vector<int64_t> bytes;   // by server: what it receives and sends back
};

// A pure function of its arguments: every rank computes the same, on machines whose logarithms have
// the same bits (parallel/attention/plan_agreement.h). Throws Error(kConfig) if the servers'
// buffers are too small even for what is to be computed where nothing is moved, saying by how much.
Schedule schedule_tasks(const Problem& problem, Direction direction);

// The smallest Servers::buffer_bytes with which there is a schedule for every sample of this layout
// whose documents do not cross borders of problem.documents, whatever its mask, in both directions.
int64_t least_buffer_bytes(const Problem& problem);

// Servers::buffer_bytes with which neither balance nor rounds give way for this sample, in both
// directions: what is counted where there is no limit.
int64_t enough_buffer_bytes(const Problem& problem);

// For comparison: the greedy rule that DistCA has published (section 4.2), as read from its text.
// Servers below the mean, the emptiest first, take from those above it the item, or the last
// queries of one with all their keys, that saves the most work for each byte, whatever already lies
// there, until they lack less than `imbalance` of the mean. Nobody looks at what is then left above
// it, so that the maximum has no bound. In place.
Schedule published_greedy(const Problem& problem, Direction direction);

}  // namespace longhaul::parallel
