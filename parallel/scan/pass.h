// What the files of LinearAttention share. Internal to parallel/scan.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "parallel/attention/execution.h"
#include "parallel/scan/linear_attention.h"
#include "parallel/scan/relayout.h"
#include "parallel/scan/runs.h"

namespace longhaul::parallel {

// A sample, as this rank computes it.
struct LinearAttention::Sample {
  OwnRuns own;
  std::optional<Relayout> relayout;          // rows are brought to a contiguous layout and back
  std::optional<TokenLayout> runs;           // of all ranks
  using Plans = std::array<Plan, 2>;         // by direction
  std::map<std::vector<bool>, Plans> plans;  // by the heads that forget
  const Plans* used = nullptr;               // by the pass that starts
  std::vector<std::array<Plan, 2>> plans_of_groups;  // of heads: by_heads.cc
};

// This rank's maps, [runs, H, D, Dv] and [runs, H, elements], and their way.
struct LinearAttention::Scan {
  TensorView sums, decay;
  std::unique_ptr<Execution> execution;
};

// Some of the heads, exchanged and computed together, and what enters each run.
struct LinearAttention::HeadGroup {
  Span heads;
  Scan scan;
  TensorView entering;
};

// A pass under way: its memory, from the communication arena, and what it works on, which are the
// caller's tensors or those of a re-layout.
struct LinearAttention::Pass {
  explicit Pass(Arena& communication) : scope(communication), arena(communication) {}

  Arena::Scope scope;
  Arena& arena;
  Scan scan;
  std::vector<HeadGroup> groups;  // instead of `scan`
  Scan* under_way = nullptr;      // of the groups
  Scan other_scan;  // bidirectional: from the right in forward, from the left in backward
  // Bidirectional without decays: the sums over all tokens, while they are made.
  TensorView total;
  std::optional<dist::Request> summing;
  // Results that nobody wants.
  std::array<TensorView, 2> unused;
  LinearAttentionForwardArgs caller, args;
};

}  // namespace longhaul::parallel
