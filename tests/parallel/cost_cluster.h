// Clusters made up for tests: figures so simple that times can be computed by hand.
#pragma once

#include <limits>
#include <vector>

#include "parallel/cost/cluster.h"

namespace longhaul::test {

// Everything is free but what a test sets: no latency, no copies, no calls; `rate` seconds for each
// pair of a query and a key.
inline parallel::Cluster free_cluster(double rate, DType dtype, int64_t head_dim) {
  const parallel::Link fast{.bytes_per_second = std::numeric_limits<double>::infinity()};
  return {.within_rank = fast,
          .within_node = fast,
          .between_nodes = fast,
          .memory_bytes_per_second = std::numeric_limits<double>::infinity(),
          .profiles = {{.dtype = dtype,
                        .head_dim = head_dim,
                        .lengths = {1},
                        .forward = {rate},
                        .backward = {rate}}}};
}

}  // namespace longhaul::test
