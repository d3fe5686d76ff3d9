// Times what the ranks of a group do together.
#pragma once

#include <cstdint>
#include <functional>

#include "dist/group.h"
#include "kernels/core/context.h"

namespace longhaul::launch {

struct GroupTiming {        // the same on every rank
  double seconds = 0;       // from a common start until the last rank is done
  double waited = 0;        // of it, seconds in which a rank could only wait: the mean over ranks
  double busy = 0;          // seconds in which a rank did not wait: the mean over ranks
  double most_busy = 0;     // of the rank that waited least
  int64_t moved_bytes = 0;  // received in messages, by all ranks together
  int64_t in_place_bytes = 0;  // read from neighbours' memory instead
};

// Collective: runs `work` on every rank at once, up to the end of what it puts into ctx's stream.
GroupTiming time_together(dist::Group& group, const Context& ctx,
                          const std::function<void()>& work);

// Options --ranks and --threads (0: not given) and --seconds of benchmarks over ranks; throws
// Error(kConfig), naming the option and what would do.
void check_timing_over_ranks(int64_t ranks, int64_t threads, double least_seconds);

}  // namespace longhaul::launch
