// `longhaul train`
#pragma once

#include "launch/cli/command.h"

namespace longhaul::launch {

Action add_train_command(CLI::App& app);

}  // namespace longhaul::launch
