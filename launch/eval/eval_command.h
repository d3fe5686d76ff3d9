// `longhaul eval`
#pragma once

#include "launch/cli/command.h"

namespace longhaul::launch {

Action add_eval_command(CLI::App& app);

}  // namespace longhaul::launch
