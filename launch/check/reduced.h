// The problem that `longhaul check` runs: the user's own, made small.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/attention/core_attention.h"

namespace longhaul::launch {

struct ReducedProblem {
  parallel::TokenLayout layout;
  parallel::CoreAttentionOptions attention;
  std::vector<parallel::Documents> samples;  // one document; and many, which straddle ranks
};

// Fewer tokens, which chunks of 2 x ranks share as unevenly as the run's; a few more query heads
// than ranks, at the run's ratio to kv heads, if the run has as many; windows and prefixes cut in
// proportion. Sizes of a head, dtype, strategy and all else stay.
ReducedProblem reduce(const parallel::LayoutKind& layout, int64_t tokens, int ranks,
                      const parallel::CoreAttentionOptions& attention);

}  // namespace longhaul::launch
