// A transport that moves nothing: every message completes at once, bytes are counted. The measuring
// run (see kernels/core/arena.h) and `longhaul plan` use it to be any rank of any cluster.
#pragma once

#include <memory>

#include "dist/group.h"

namespace longhaul::dist {

std::unique_ptr<Group> null_group(int rank, int size);

}  // namespace longhaul::dist
