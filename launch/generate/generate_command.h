// `longhaul generate`
#pragma once

#include "launch/cli/command.h"

namespace longhaul::launch {

Action add_generate_command(CLI::App& app);

}  // namespace longhaul::launch
