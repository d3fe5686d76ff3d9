// For tests that are only long because they are many of a kind.
#pragma once

#include <cstdlib>

namespace longhaul::test {

// Whether the build runs an order of magnitude slower than a release build, as with sanitizers or
// on an emulated device: says LONGHAUL_TEST_SLOW_BUILD in the environment. What such builds are to
// find is the same in fewer or shorter cases; what is the same for all, one case shows.
inline bool slow_build() { return std::getenv("LONGHAUL_TEST_SLOW_BUILD") != nullptr; }

}  // namespace longhaul::test
