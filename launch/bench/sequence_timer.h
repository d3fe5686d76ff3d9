// Times one layer of core attention over the ranks of a group, on random operands.
#pragma once

#include <cstdint>
#include <string>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "parallel/attention/core_attention.h"

namespace longhaul::launch {

struct SequenceCase {
  parallel::TokenLayout layout;
  parallel::Documents documents;
  parallel::CoreAttentionOptions attention;  // strategy, mask, heads, dtype, in place or not
};

enum class SequencePass { kForward, kBackward, kBoth };

struct SequenceTiming {     // the same on every rank
  double seconds = 0;       // from a common start until the last rank has its results
  double waited = 0;        // of it, seconds in which a rank could only wait: the mean over ranks
  int64_t moved_bytes = 0;  // received in messages, by all ranks together
  int64_t in_place_bytes = 0;  // read from neighbours' memory instead
};

class SequenceTimer {
 public:
  // Collective over `group`, as are all members but those that are const. Makes operands and
  // buffers on ctx's device and runs both passes once, to warm up. `group` and ctx's pool must
  // outlive this; ctx's scratch is not used. Throws Error(kConfig) on every rank if the strategy
  // refuses the case.
  SequenceTimer(dist::Group& group, const Context& ctx, const SequenceCase& c);

  // delta is not computed and gradients need no forward of their own: backward may be timed alone.
  SequenceTiming time(SequencePass pass);

  // (query, key) pairs x query heads of all ranks, and the largest of any rank over the mean.
  int64_t pairs() const { return pairs_; }
  double imbalance() const { return imbalance_; }

 private:
  void run(const Context& ctx, Arena& communication, SequencePass pass);

  dist::Group& group_;
  Context ctx_;
  parallel::CoreAttention attention_;
  Tensor q_, k_, v_, dout_, out_, lse_, delta_, dq_, dk_, dv_;
  Arena scratch_, communication_;
  int64_t pairs_ = 0;
  double imbalance_ = 1;
};

// Options --ranks and --threads (0: not given) and --seconds of benchmarks over ranks; throws
// Error(kConfig), naming the option and what would do.
void check_timing_over_ranks(int64_t ranks, int64_t threads, double least_seconds);

}  // namespace longhaul::launch
