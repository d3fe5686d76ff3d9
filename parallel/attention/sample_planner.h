// Layout and plans of a sample for one rank: a pure function of its documents.
#pragma once

#include "parallel/attention/core_attention.h"

namespace longhaul::parallel {

// Refers to nothing outside of itself and is never changed, so that a thread may plan with it.
class SamplePlanner {
 public:
  // layout: the one on which memory is measured; forward, backward: the options' strategies.
  SamplePlanner(const CoreAttentionOptions& options, const Strategy& forward,
                const Strategy& backward, const TokenLayout& layout, int rank);

  // Refers to the arguments and to this.
  Problem problem(const Documents& documents, const TokenLayout& layout, const Mask& mask) const;
  SamplePlans plans(const Documents& documents) const;

 private:
  TokenLayout layout_of(const Documents& documents) const;

  const CoreAttentionOptions options_;
  const Strategy forward_, backward_;
  const TokenLayout layout_;
  const int rank_;
};

}  // namespace longhaul::parallel
