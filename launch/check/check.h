// Compares attention over ranks with attention on one rank, on the run's own layout, mask,
// strategy, heads and dtype at a reduced size: the same rank does both, so that nothing but the
// schedule, the transfers and the merging of partial results can differ.
//
// - In f64 the two must be equal to rounding.
// - In the run's dtype the error against one rank in f64, on the same rounded operands, may be at
//   most twice that of one rank in the same dtype.
//
// A tensor's error is the norm of its difference over its own norm, for each head; the worst head
// and sample count.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "launch/config/config.h"
#include "launch/train/strategy_choice.h"
#include "parallel/attention/core_attention.h"

namespace longhaul::launch {

struct Deviation {
  std::string tensor;  // out, lse, dq, dk, dv; dsink if there are sinks
  DType dtype = DType::kF64;
  double max_relative_error = 0;
  double limit = 0;
  // Also if it is not a number.
  bool too_large() const { return !(max_relative_error <= limit); }
};

// What is checked: a layer's attention as it runs.
struct CheckedAttention {
  const parallel::LayoutKind& layout;
  int64_t tokens = 0;  // of a sample
  parallel::CoreAttentionOptions options;
  bool sinks = false;

  std::string name() const;  // "ring on layout zigzag"
};
CheckedAttention checked_attention(const Config& config, const SettledStrategies& settled);

// Collective over `sequence`, the ranks that share a sample; the same result on all of them. Runs
// on ctx's device and threads; ctx's scratch is not used. `table`: where the strategy is looked up.
std::vector<Deviation> check_attention(
    dist::Group& sequence, const Context& ctx, const CheckedAttention& attention,
    std::span<const parallel::Strategy> table = parallel::strategies());

// Collective over `world`: throws Error(kNumerics) on every rank, naming tensor, deviation, limit
// and strategy, if a deviation on any is too large.
void require_small(dist::Group& world, const CheckedAttention& attention,
                   std::span<const Deviation> deviations);

// "ring on layout zigzag equals one rank: largest deviation 52 % of its limit (dk in bf16)"
std::string summary(const CheckedAttention& attention, std::span<const Deviation> deviations);

}  // namespace longhaul::launch
