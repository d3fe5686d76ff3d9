// The problem that `longhaul check` runs: the user's own, made small.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/mesh.h"
#include "parallel/attention/core_attention.h"
#include "parallel/layout/joint.h"

namespace longhaul::launch {

struct ReducedProblem {
  parallel::TokenLayout layout;
  parallel::CoreAttentionOptions attention;
  std::vector<parallel::Documents> samples;  // one document; and many, which straddle ranks
};

// Fewer tokens, which chunks of 2 x ranks share as unevenly as the run's; a few more query heads
// than ranks, at the run's ratio to kv heads, if the run has as many; windows and prefixes cut in
// proportion; tiles of a few rows and no imbalance allowed, or servers would have nothing worth
// moving. Sizes of a head, dtype, strategy and all else stay.
//
// ranks: those that share attention. Where they have several replicas, or servers, samples are
// joint ones, in which each replica has documents of its own, and `of_one` lays out one replica's.
ReducedProblem reduce(const parallel::LayoutKind& layout, int64_t tokens,
                      const dist::MeshShape& ranks, const parallel::CoreAttentionOptions& attention,
                      const parallel::SampleLayout& of_one = {});

}  // namespace longhaul::launch
