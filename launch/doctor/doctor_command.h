// `longhaul doctor`
#pragma once

#include "launch/cli/command.h"

namespace longhaul::launch {

Action add_doctor_command(CLI::App& app);

}  // namespace longhaul::launch
