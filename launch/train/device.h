// Which device a rank computes on.
#pragma once

#include "dist/group.h"
#include "kernels/core/stream.h"
#include "launch/config/config.h"

namespace longhaul::launch {

// With `device: CUDA`, the GPU whose number is the rank's among the ranks of its node; with
// parallel.gpu_transport HOST, ranks share GPUs where there are too few. Throws
// Error(kEnvironment) if there is no such GPU.
Device device_of(const dist::Group& world, const Config& config);

// Collective: a stream of that device; ranks with GPUs send over NCCL from then on, if
// parallel.gpu_transport says so, also in groups that are split off `world` later.
OwnedStream open_device(dist::Group& world, const Config& config);

}  // namespace longhaul::launch
