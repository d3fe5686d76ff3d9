// For tests of code that is compiled for several instruction sets.
#pragma once

#include <functional>
#include <string>

#include "gtest/gtest.h"
#include "kernels/instruction_set.h"

namespace longhaul::kernels::testing {

// Runs `body` with each instruction set that this machine has and the code was compiled for.
inline void for_each_instruction_set(const std::function<void()>& body) {
  const std::string before(instruction_set());
  for (std::string_view name : instruction_sets()) {
    SCOPED_TRACE(std::string(name));
    use_instruction_set(name);
    body();
  }
  use_instruction_set(before);
}

}  // namespace longhaul::kernels::testing
