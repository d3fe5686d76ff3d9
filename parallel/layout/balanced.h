// The layout for packed documents: every rank equally many tokens, nearly the same attention work,
// and few keys of other ranks. How, and what it reaches: parallel/ALGORITHMS.md, "Layouts".
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/layout/load.h"
#include "parallel/layout/segments.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::parallel {

// Each rank has as many rows as in TokenLayout::contiguous, whatever the documents are; ranks have
// equally many runs (some empty), about two that are not. For one document under a causal mask,
// much as zigzag. Deterministic. Time: O(ranks^2 x chunks_per_rank + documents) for each bound that
// is tried, some milliseconds for 64 ranks. At most kMostBalancedTokens.
TokenLayout balanced(const Documents& documents, const Mask& mask, int ranks,
                     const BalancedOptions& options = {});

// Areas are counted in 64 bits.
inline constexpr int64_t kMostBalancedTokens = int64_t{1} << 31;

// The layouts from which balanced() chooses, by growing bound.
struct BalancedCandidate {
  double bound = 0;  // on max/mean that was asked for; 0: the contiguous layout
  TokenLayout layout;
  std::vector<Load> loads;
  double cost = 0;  // of the costliest rank, in pairs
};
std::vector<BalancedCandidate> balanced_candidates(const Documents& documents, const Mask& mask,
                                                   int ranks, const BalancedOptions& options);

}  // namespace longhaul::parallel
