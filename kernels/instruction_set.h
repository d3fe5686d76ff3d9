// The instruction sets for which the CPU's kernels are compiled, all in one binary. The best one
// that the machine runs is used; tests and benchmarks force others, to prove and to time them.
#pragma once

#include <string_view>
#include <vector>

namespace longhaul::kernels {

// Those that this binary has and this machine runs, the best first: among "AVX512_BF16", "AVX512",
// "AVX2" and, always the last, "BASELINE", what every machine of the architecture has.
std::vector<std::string_view> instruction_sets();

// The one in use.
std::string_view instruction_set();

// Uses `name` and nothing better from now on, for the whole process. Not while kernels run. Throws
// Error(kEnvironment), listing the others, if this machine does not run it.
void use_instruction_set(std::string_view name);

}  // namespace longhaul::kernels
