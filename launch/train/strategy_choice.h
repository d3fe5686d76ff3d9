// Which strategies attention runs with: those that are configured, or for "auto" the cheapest by
// measured or given costs.
#pragma once

#include <string>
#include <vector>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "launch/config/cluster.h"
#include "launch/config/config.h"
#include "parallel/attention/core_attention.h"

namespace longhaul::launch {

struct SettledStrategies {
  std::string forward, backward;
  int ranks_per_node = 1;
  // Of "auto": what was chosen and why, for people; the file that a resumed run reads it from.
  std::vector<std::string> lines;
  std::string record;
};

// Where a choice is made: one layer over one sample.
struct StrategySetting {
  const parallel::TokenLayout& layout;
  const parallel::Documents& documents;  // of a typical sample
  const parallel::CoreAttentionOptions& options;
  // The record of an earlier run, which is used again if nothing has changed; may not exist, and ""
  // is none.
  std::string record_path;
};

// Collective over `world` and over `sequence`, the ranks that share a sample. Every rank gets what
// rank 0 of the world found. Throws SharedError if the strategies refuse, or a file is bad.
SettledStrategies settle_strategies(dist::Group& world, dist::Group& sequence, const Context& ctx,
                                    const Config& config, const StrategySetting& setting);

// "causal", "causal, window 1024": as shown and compared.
std::string describe(const parallel::Mask& mask);

}  // namespace longhaul::launch
