// `longhaul plan`: what a run would do, on as many ranks as one likes to have, without starting
// any.
#pragma once

#include "launch/cli/command.h"

namespace longhaul::launch {

Action add_plan_command(CLI::App& app);

}  // namespace longhaul::launch
