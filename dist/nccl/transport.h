// The transport of nccl.h, whoever sits where.
#pragma once

#include <memory>

#include "dist/device_transport.h"
#include "dist/group.h"

namespace longhaul::dist::nccl {

// Collective; over a fresh id, which the group's first rank makes.
std::unique_ptr<DeviceTransport> connect(Group& group, Device device);

}  // namespace longhaul::dist::nccl
