// `longhaul bench`: one subcommand per question.
#pragma once

#include <span>

#include "launch/cli/command.h"

namespace longhaul::launch {

std::span<const Command> bench_commands();

}  // namespace longhaul::launch
