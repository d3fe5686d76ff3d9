// Compares attention over ranks with attention on one rank, on the run's own layout, mask,
// strategy, heads and dtype at a reduced size: the same rank does both, so that nothing but the
// schedule, the transfers and the merging of partial results can differ. What deviation is allowed:
// deviation.h.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dist/mesh.h"
#include "kernels/core/context.h"
#include "launch/check/deviation.h"
#include "launch/config/config.h"
#include "launch/train/strategy_choice.h"
#include "parallel/attention/core_attention.h"
#include "parallel/layout/joint.h"

namespace longhaul::launch {

// What is checked: a layer's attention as it runs.
struct CheckedAttention {
  const parallel::LayoutKind& layout;
  int64_t tokens = 0;  // of a sample
  parallel::CoreAttentionOptions options;
  bool sinks = false;
  dist::MeshShape ranks;               // that share attention
  parallel::SampleLayout of_one = {};  // of joint samples, see reduced.h

  Subject subject() const;
};
CheckedAttention checked_attention(const Config& config, const SettledStrategies& settled);

// Collective over `group`, the ranks that share attention; the same result on all of them. Runs
// on ctx's device and threads; ctx's scratch is not used. `table`: where the strategy is looked up.
std::vector<Deviation> check_attention(
    dist::Group& group, const Context& ctx, const CheckedAttention& attention,
    std::span<const parallel::Strategy> table = parallel::strategies());

}  // namespace longhaul::launch
