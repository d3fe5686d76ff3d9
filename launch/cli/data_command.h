// `longhaul data`: prepare, inspect, synthesize.
#pragma once

#include <span>

#include "launch/cli/command.h"

namespace longhaul::launch {

std::span<const Command> data_commands();

}  // namespace longhaul::launch
