// Memory for rows of other ranks under strategy disaggregated.
#pragma once

#include <cstdint>
#include <vector>

#include "launch/config/config.h"

namespace longhaul::launch {

// Ranks that only serve; none: every rank does. `config` is resolved, here and below.
std::vector<int> server_ranks(const Config& config);

// With fewer bytes of each rank there are samples that cannot be planned.
int64_t least_server_buffer_bytes(const Config& config);
// Of each rank: parallel.server_buffer_mib, or else room enough for twice the mean of queries on a
// server and the keys that they see at most, for what is packed at home and comes back, or for both
// where every rank serves; in the scheduler's own count (parallel/server/row_bytes.h).
int64_t server_buffer_bytes(const Config& config);

}  // namespace longhaul::launch
