// Ranks as threads of one process: `longhaul train --ranks 4`, and every schedule's proof.
#pragma once

#include <chrono>
#include <functional>

#include "dist/group.h"

namespace longhaul::dist {

// Runs `body` once per rank, each in a thread of its own, and returns when all have ended. If a
// rank throws, the others' waits fail at once, and the first error (not one that is a consequence
// of it) is thrown. `deadline` is every group's Job::deadline.
void run_local(int ranks, std::chrono::milliseconds deadline,
               const std::function<void(Group& world)>& body);

}  // namespace longhaul::dist
