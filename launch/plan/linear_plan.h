// Linear attention of one layer over one sample: what every method of composing states over ranks
// sends, and how long it takes.
#pragma once

#include <string>
#include <vector>

#include "launch/config/config.h"
#include "parallel/cost/choose_scan.h"

namespace longhaul::launch {

struct LinearPlan {
  int64_t layers = 0;  // that attend linearly
  std::string kind;
  int64_t heads = 0, key_dim = 0, value_dim = 0;
  int64_t state_bytes = 0;            // of one state, all heads
  bool relayout = false;              // rows go to a contiguous layout first, and results back
  std::vector<std::string> sources;   // where the figures come from, for people
  std::vector<std::string> left_out;  // by parallel.linear_decay_bound, for people
  parallel::ScanChoice choice;        // received bytes are of states, not of rows
};

// `config` is resolved, and its model has linear layers; of several shapes of states, the first
// layer's. Figures as those of plan_attention(); the sample is one document.
LinearPlan plan_linear_attention(const Config& config);

}  // namespace longhaul::launch
