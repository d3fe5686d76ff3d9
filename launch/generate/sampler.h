// Chooses the next token of a text.
#pragma once

#include <cstdint>
#include <span>

namespace longhaul::launch {

struct SamplerOptions {
  double temperature = 0;  // logits are divided by it; 0: greedy, the likeliest token
  double top_p = 1;        // of the likeliest tokens that together have this much probability
  uint64_t seed = 1;
};
// Throws Error(kConfig) for what cannot be.
void check(const SamplerOptions& options);

// logits: of the tokens to choose among. `index`: of the choice; the same options, logits and index
// give the same token. Of equally likely tokens the lowest comes first. top_p is nucleus sampling
// (Holtzman et al. 2020, section 3.1): the smallest set with at least that much. Throws
// Error(kNumerics) if a logit is not finite.
int32_t choose(const SamplerOptions& options, std::span<const double> logits, uint64_t index);

}  // namespace longhaul::launch
