// Ranks plan alone, each for itself. Where their plans rest on costs in floating point, whose last
// bit may be another one with another C library or CPU, they make sure that they have planned alike
// before the first message: messages that do not match would be waited for until the deadline.
#pragma once

#include <cstdint>
#include <optional>

#include "dist/group.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {

// Collective, one small exchange. digest: of what this rank has planned (Plan::digest); error: why
// it could not. Throws on every rank, as Group::agree does, if any rank brings an error or if the
// digests are not all the same, then Error(kEnvironment) with the ranks and the fix.
void agree_on_plans(dist::Group& group, const std::optional<Error>& error, uint64_t digest);

}  // namespace longhaul::parallel
