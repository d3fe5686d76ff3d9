// Linear attention of one layer over one sample: what every method of composing states over ranks
// sends.
#pragma once

#include <string>
#include <vector>

#include "launch/config/config.h"

namespace longhaul::launch {

struct LinearCandidate {
  std::string method;
  double received_mean = 0;  // bytes of a rank: states, not rows
  int64_t received_max = 0;
  int64_t chain = 0;  // messages that wait for each other, at most
};

struct LinearPlan {
  int64_t layers = 0;  // that attend linearly
  std::string kind;
  int64_t heads = 0, key_dim = 0, value_dim = 0;
  int64_t state_bytes = 0;  // of one state, all heads
  bool relayout = false;    // rows go to a contiguous layout first, and results back
  std::vector<LinearCandidate> forward, backward;
};

// `config` is resolved, and its model has linear layers; of several shapes of states, the first
// layer's.
LinearPlan plan_linear_attention(const Config& config);

}  // namespace longhaul::launch
