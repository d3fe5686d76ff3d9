// Limits of the control group (cgroup v2 or v1) this process is in: what containers and batch
// systems grant, which may be less than the machine has.
#pragma once

#include <cstdint>
#include <optional>

namespace longhaul::launch {

// CPU time per time, in cores; nullopt without a limit.
std::optional<double> control_group_cores();

std::optional<int64_t> control_group_memory_bytes();

}  // namespace longhaul::launch
