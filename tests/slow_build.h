// For tests that are only long because they are many of a kind.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <vector>

namespace longhaul::test {

// Whether the build runs an order of magnitude slower than a release build, as with sanitizers or
// on an emulated device: says LONGHAUL_TEST_SLOW_BUILD in the environment. What such builds are to
// find is the same in fewer or shorter cases; what is the same for all, one case shows.
inline bool slow_build() { return std::getenv("LONGHAUL_TEST_SLOW_BUILD") != nullptr; }

// All cases; in slow builds the first one and every `step`th after it.
template <typename Case>
std::vector<Case> some_of(const std::vector<Case>& cases, size_t step) {
  if (!slow_build()) return cases;
  std::vector<Case> some;
  for (size_t i = 0; i < cases.size(); i += step) some.push_back(cases[i]);
  return some;
}

}  // namespace longhaul::test
