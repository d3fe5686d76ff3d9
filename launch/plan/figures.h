// What predictions of `longhaul plan` rest on: a cluster description, or this machine.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "launch/config/config.h"
#include "parallel/attention/core_attention.h"
#include "parallel/cost/cluster.h"
#include "parallel/scan/linear_attention.h"

namespace longhaul::launch {

// Reads parallel.cluster; without one, and for kernels that it leaves out, measures the kernels
// that are asked for, over up to `rows` rows, and memory here, and assumes links. Appends to
// `sources` where the figures come from, for people.
parallel::Cluster figures(const Config& config, int64_t rows,
                          const std::optional<parallel::CoreAttentionOptions>& softmax,
                          const std::optional<parallel::LinearAttentionOptions>& linear,
                          std::vector<std::string>& sources);

// Ranks of a node, at most `ranks`.
int per_node(const Config& config, const parallel::Cluster& cluster, int ranks,
             std::vector<std::string>& sources);

}  // namespace longhaul::launch
