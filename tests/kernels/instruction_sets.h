// For tests of code that is compiled for several instruction sets.
#pragma once

#include <functional>
#include <string>

#include "gtest/gtest.h"
#include "kernels/instruction_set.h"
#include "tests/kernels/reference.h"

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

// for_each_row(), on every instruction set; rows of devices, which have none, once.
template <class Kernel, class F>
void for_each_row_and_set(std::span<const Kernel> Backend::*table, F f) {
  bool first = true;
  for_each_instruction_set([&] {
    for_each_row(table, [&](const Kernel& row) {
      if (first || test_device() == kCpu) f(row);
    });
    first = false;
  });
}

}  // namespace longhaul::kernels::testing
