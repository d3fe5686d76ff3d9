// `longhaul checkpoint import|export`: models from and for Hugging Face's libraries.
#pragma once

#include <span>

#include "launch/cli/command.h"

namespace longhaul::launch {

std::span<const Command> checkpoint_commands();

}  // namespace longhaul::launch
