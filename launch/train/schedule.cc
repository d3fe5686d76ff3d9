#include "launch/train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace longhaul::launch {

double Schedule::operator()(int64_t step) const {
  if (step <= warmup_steps) {
    return peak * static_cast<double>(step) / static_cast<double>(warmup_steps);
  }
  const double span = static_cast<double>(std::max<int64_t>(1, steps - warmup_steps));
  const double done = std::min(1.0, static_cast<double>(step - warmup_steps) / span);
  return minimum + 0.5 * (peak - minimum) * (1.0 + std::cos(std::numbers::pi * done));
}

}  // namespace longhaul::launch
