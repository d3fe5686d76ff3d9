// Which device a rank computes on.
#pragma once

#include "dist/group.h"
#include "launch/config/config.h"

namespace longhaul::launch {

// With `device: CUDA`, the GPU whose number is the rank's among the ranks of its node; with
// parallel.gpu_transport HOST, ranks share GPUs where there are too few. Throws
// Error(kEnvironment) if there is no such GPU.
Device device_of(const dist::Group& world, const Config& config);

}  // namespace longhaul::launch
