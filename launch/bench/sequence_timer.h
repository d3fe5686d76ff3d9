// Times one layer of core attention over the ranks of a group, on random operands.
#pragma once

#include <cstdint>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "launch/bench/group_timer.h"
#include "parallel/attention/core_attention.h"

namespace longhaul::launch {

struct SequenceCase {
  parallel::TokenLayout layout;
  parallel::Documents documents;
  parallel::CoreAttentionOptions attention;  // strategy, mask, heads, dtype, in place or not
};

enum class SequencePass { kForward, kBackward, kBoth };

class SequenceTimer {
 public:
  // Collective over `group`, as are all members but those that are const. Makes operands and
  // buffers on ctx's device and runs both passes once, to warm up. `group` and ctx's pool must
  // outlive this; ctx's scratch is not used. Throws Error(kConfig) on every rank if the strategy
  // refuses the case.
  SequenceTimer(dist::Group& group, const Context& ctx, const SequenceCase& c);

  // delta is not computed and gradients need no forward of their own: backward may be timed alone.
  GroupTiming time(SequencePass pass) { return time(pass, group_); }
  // Together with others that have groups of their own, such as of one rank each.
  GroupTiming time(SequencePass pass, dist::Group& together);
  // What the attention's passes are recorded in from now on; null: nothing.
  void record(parallel::ActivityLog* log) { attention_.record(log); }

  // (query, key) pairs x query heads of all ranks, and the largest of any rank over the mean.
  int64_t pairs() const { return pairs_; }
  double imbalance() const { return imbalance_; }
  const parallel::Plan& plan(parallel::Direction direction) const {
    return attention_.plan(direction);
  }

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

}  // namespace longhaul::launch
