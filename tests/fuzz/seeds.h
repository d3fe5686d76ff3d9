// What fuzzing starts from has to get past the readers, or it would have to invent valid files.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "kernels/core/error.h"

namespace longhaul {

// With LONGHAUL_FUZZ_SEEDS set, inputs are seeds (run.sh), and one that is refused is a failure.
inline void refused(const Error& error) {
  if (std::getenv("LONGHAUL_FUZZ_SEEDS") == nullptr) return;
  std::fprintf(stderr, "a seed is refused: %s\n", error.what());
  std::abort();
}

}  // namespace longhaul
