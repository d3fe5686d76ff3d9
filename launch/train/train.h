// The training run.
#pragma once

#include "dist/group.h"
#include "launch/config/config.h"

namespace longhaul::launch {

// Collective over `world`. `config` is resolved for its size. Returns when the run has done its
// last step. Throws SharedError(kInterrupted) if a signal stopped it after a checkpoint.
void train(dist::Group& world, const Config& config);

}  // namespace longhaul::launch
