#pragma once

#include "parallel/server/placement.h"
#include "parallel/server/schedule.h"

namespace longhaul::parallel {

// What a placement has come to: rows that once lay at a server and are not needed there any more
// do not count.
Schedule schedule_of(const Problem& problem, Direction direction, const Placement& placement);

}  // namespace longhaul::parallel
