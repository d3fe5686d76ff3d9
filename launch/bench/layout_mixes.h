// Packed samples as long-context training sees them, for `longhaul bench layout`.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "parallel/layout/documents.h"

namespace longhaul::launch {

struct LengthMix {
  std::string_view name;
  // Length of document `index` of a sample of `tokens`; u is uniform in [0, 1).
  double (*length)(double u, int64_t index, int64_t tokens);
  bool scaled_first = true;  // --scale applies to the first document, too
};

// uniform   lengths uniform between 1 and 32,768
// prolong   the long-context mixture of ProLong (Gao et al. 2024)
// wlb       that of WLB-LLM (Wang et al. 2025)
// long      one document of a quarter of the sample, then many of 500 to 4,000 tokens
std::span<const LengthMix> length_mixes();

// Documents of the mix one after the other until the sample is full; all lengths times `scale`.
parallel::Documents mixed_documents(const LengthMix& mix, int64_t tokens, int64_t scale,
                                    uint64_t seed);

}  // namespace longhaul::launch
