// Learning rate over the steps of a run.
#pragma once

#include <cstdint>

namespace longhaul::launch {

// Linear warm-up, then half a cosine down to the minimum at the last step.
struct Schedule {
  double peak = 0;
  double minimum = 0;
  int64_t warmup_steps = 0;
  int64_t steps = 0;

  // step: from 1 to steps.
  double operator()(int64_t step) const;
};

}  // namespace longhaul::launch
