// For tests of code that is compiled for several instruction sets.
#pragma once

#include <functional>
#include <string>

#include "kernels/instruction_set.h"
#include "tests/kernels/reference.h"
#include "tests/slow_build.h"

namespace longhaul::kernels::testing {

// Runs `body` with each instruction set that this machine has and the code was compiled for, in
// slow builds with the best alone.
inline void for_each_instruction_set(const std::function<void()>& body) {
  if (test::slow_build()) return body();
  const std::string before(instruction_set());
  for (std::string_view name : instruction_sets()) {
    SCOPED_TRACE(std::string(name));
    use_instruction_set(name);
    body();
  }
  use_instruction_set(before);
}

// f(row) for every row of a table: on CPUs with each instruction set, on devices once.
template <class Kernel, class F>
void for_each_row_and_instruction_set(std::span<const Kernel> Backend::*table, F f) {
  for_each_row(table, [&](const Kernel& row) {
    if (test_device().kind != DeviceKind::kCpu) return f(row);
    for_each_instruction_set([&] {
      if (row.available()) f(row);
    });
  });
}

}  // namespace longhaul::kernels::testing
