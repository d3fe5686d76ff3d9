// `longhaul bench comm`: what the links between the ranks of a job do.
#pragma once

#include "launch/cli/command.h"

namespace longhaul::launch {

Action add_comm_bench(CLI::App& app);

}  // namespace longhaul::launch
