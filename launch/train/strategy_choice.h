// Which strategies attention runs with, and by which method linear attention composes its states:
// those that are configured, or for "auto" the cheapest by measured or given costs; and what the
// balanced layout pays for a row.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "dist/group.h"
#include "kernels/core/context.h"
#include "launch/config/cluster.h"
#include "launch/config/config.h"
#include "parallel/attention/core_attention.h"
#include "parallel/scan/linear_attention.h"

namespace longhaul::launch {

struct SettledStrategies {
  std::string forward, backward;
  std::string linear_method;
  int ranks_per_node = 1;
  double row_price = 0;  // in pairs of attention, for layouts that go by documents
  // Of strategy disaggregated, from parallel.cluster: what tasks weigh; none: their pairs.
  std::optional<parallel::KernelProfile> profile = {};
  // Of what was left open: what was chosen and why, for people; the file that a resumed run reads
  // it from.
  std::vector<std::string> lines;
  std::string record;
};

// Where a choice is made: one layer over one sample.
struct StrategySetting {
  // Given the price of a row; may throw Error(kConfig).
  std::function<parallel::TokenLayout(double row_price)> layout;
  const parallel::Documents& documents;  // of a typical sample
  const parallel::CoreAttentionOptions& options;
  // The record of an earlier run, which is used again if nothing has changed; may not exist, and ""
  // is none.
  std::string record_path;
  bool softmax = true;  // whether layers attend with softmax, whose strategies are then settled
  // Of linear layers, if there are any: the first one's.
  std::optional<parallel::LinearAttentionOptions> linear = {};
  std::vector<double> linear_slopes = {};  // where decays are fixed
};

// Collective over `world` and over `sequence`, the ranks that share a sample. Every rank gets what
// rank 0 of the world found. Throws SharedError if layout or strategies refuse, or a file is bad.
SettledStrategies settle_strategies(dist::Group& world, dist::Group& sequence, const Context& ctx,
                                    const Config& config, const StrategySetting& setting);

// "causal", "causal, window 1024": as shown and compared.
std::string describe(const parallel::Mask& mask);

}  // namespace longhaul::launch
