// The memory of one rank by purpose. A rank's arenas are measured by a dry run, then reserved at
// exactly that size before step one.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <utility>

#include "kernels/core/arena.h"

namespace longhaul::launch {

struct RankMemory {
  Arena parameters, gradients, optimizer, activations, workspace, communication;

  static RankMemory measure(Device device);
  // Reserves the measured peaks. Throws Error(kEnvironment).
  static RankMemory reserve(const RankMemory& measured);

  using Classes = std::array<std::pair<std::string_view, int64_t>, 6>;
  Classes peaks() const;       // bytes per class that were in use at a time
  Classes capacities() const;  // bytes per class that are reserved: the plan
  int64_t peak() const;        // sums
  int64_t capacity() const;
};

}  // namespace longhaul::launch
