// How long ranks wait for each other by a set of plans, in messages.
#pragma once

#include <cstdint>
#include <span>

#include "parallel/plan/plan.h"

namespace longhaul::parallel {

// plans: of all ranks, which fit each other. The most messages between ranks of which each can only
// start when the one before is complete: what latency costs where links and computing are fast.
int64_t longest_chain(std::span<const Plan> plans);

}  // namespace longhaul::parallel
