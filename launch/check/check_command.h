// `longhaul check`
#pragma once

#include "launch/cli/command.h"

namespace longhaul::launch {

Action add_check_command(CLI::App& app);

}  // namespace longhaul::launch
