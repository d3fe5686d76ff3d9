// Bytes that rows of others take, of all heads that share a kv head.
#pragma once

#include <cstdint>

#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

// Blocks of staging memory: with rounds, one exchange may be on its way there, one back, and one
// about to be folded.
constexpr int64_t staging_blocks(int nano_batches) { return nano_batches == 1 ? 1 : 3; }

struct RowBytes {
  struct Side {
    int64_t moved = 0;      // on the wire, there and back
    int64_t at_server = 0;  // memory of its slots and for staging
    int64_t at_home = 0;    // memory to pack it, and for what comes back and is folded from a copy
  };
  Side query, key;
};
// What the scheduler counts by, and so what a limit of buffers must be chosen by.
RowBytes row_bytes(const HeadShape& heads, DType dtype, Direction direction, int nano_batches);

}  // namespace longhaul::parallel
