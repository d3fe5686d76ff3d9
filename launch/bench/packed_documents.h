// The documents of benchmarks' packed samples.
#pragma once

#include <cstdint>

#include "parallel/layout/documents.h"

namespace longhaul::launch {

// Log-normal lengths with this mean (of the underlying normal: deviation 1), the same ones in every
// run; the last document is cut off at the end.
parallel::Documents packed_documents(int64_t tokens, int64_t mean_length);

}  // namespace longhaul::launch
