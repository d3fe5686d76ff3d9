// Where work is before the scheduler moves any.
#pragma once

#include "parallel/server/placement.h"

namespace longhaul::parallel {

// In place, every rank computes its own queries. On dedicated servers, each has the queries of one
// stretch of the ranks' rows, one rank after the other, so that a document is at few servers:
enum class Start {
  kByWork,  // stretches of equal work
  kByRows   // stretches of equally many rows, whatever is in them: bounds the memory
};
void place(const Problem& problem, Start start, Placement& placement);

}  // namespace longhaul::parallel
