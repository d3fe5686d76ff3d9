// Who computes the tasks of core attention disaggregation, and within what limits
// (parallel/server/schedule.h).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/dtype.h"

namespace longhaul::parallel {

struct KernelProfile;

struct Servers {
  // Ranks that compute tasks, ascending. Empty: every rank, each first of all what it owns (in
  // place). Ranks that are none (dedicated servers) compute nothing.
  std::vector<int> ranks{};
  // What the most loaded server may have beyond the mean, as a share of it.
  double imbalance = 0.05;
  // Limit of a rank's memory for rows of others, in either direction: what it holds of them and
  // what comes back from them to be merged. 0: none.
  int64_t buffer_bytes = 0;
  DType dtype = DType::kF32;  // of q, k and v, for bytes
  // Measured costs of attention; null: work is counted in (query, key) pairs.
  const KernelProfile* profile = nullptr;
  // Rounds in which tasks are sent to others (plan_tasks): while one is computed, the rows of the
  // next arrive and the results of the one before return.
  int nano_batches = 1;
  // Rows of the kernel's tiles: tasks are cut at multiples of it.
  int64_t tile = 128;
};

}  // namespace longhaul::parallel
