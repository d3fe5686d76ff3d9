// Memory for rows of other ranks under strategy disaggregated.
#pragma once

#include <cstdint>

#include "launch/config/config.h"

namespace longhaul::launch {

// Bytes of each rank: parallel.server_buffer_mib, or else room enough for twice the mean of queries
// on a server and the keys that they see at most, for the results that come back, or for both where
// every rank serves. `config` is resolved.
int64_t server_buffer_bytes(const Config& config);

}  // namespace longhaul::launch
