// For tests of code that is compiled for several instruction sets.
#pragma once

#include <functional>

#include "gtest/gtest.h"
#include "hwy/targets.h"

namespace longhaul::kernels::testing {

// Runs `body` with each instruction set that this machine has and the code was compiled for.
inline void for_each_instruction_set(const std::function<void()>& body) {
  for (int64_t target : hwy::SupportedAndGeneratedTargets()) {
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
}

}  // namespace longhaul::kernels::testing
