// Strategies: pure functions from a problem to a plan per rank, in one table. Every rank plans for
// itself, from the same problem, without communication.
//
// To add a strategy: a file with its planner, a row in strategy.cc, a line in CMakeLists.txt and a
// section in parallel/ALGORITHMS.md; the plan properties, the parity suite and the benchmarks
// iterate the table.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/layout/segments.h"
#include "parallel/plan/plan.h"
#include "parallel/plan/servers.h"

namespace longhaul::parallel {

enum class Direction { kForward, kBackward };

// One attention layer over one sample on one sequence group.
struct Problem {
  const TokenLayout& layout;
  const Documents& documents;
  Mask mask;
  HeadShape heads;
  int ranks_per_node = 1;  // consecutive ranks on one node, for strategies with two levels
  // kv heads that all_gather fetches at a time: bounds its memory. 0: chosen, about a quarter.
  int64_t gather_heads = 0;
  Servers servers{};  // of core attention disaggregation
};

struct Strategy {
  std::string_view name;
  // Forward: home holds q, k, v and receives out, lse. Backward: home holds q, k, v, dout, lse,
  // delta and receives dq, dk, dv (all cleared by the plan itself).
  Plan (*plan)(const Problem& problem, Direction direction, int rank);
  // Why the strategy cannot do this problem, naming the fix; nullopt if it can.
  std::optional<std::string> (*refusal)(const Problem& problem);
  // The plans of all ranks, where that takes less than one after the other; null: it does not.
  std::vector<Plan> (*all_plans)(const Problem& problem, Direction direction) = nullptr;
  // Why it is taken only where it is asked for, as the end of a sentence; empty: "auto" may choose
  // it.
  std::string_view only_by_name = {};
};
// Of any strategy.
std::vector<Plan> all_plans(const Strategy& strategy, const Problem& problem, Direction direction);

std::span<const Strategy> strategies();
// Throws Error(kConfig) with the known names if there is none of this name.
const Strategy& strategy(std::string_view name, std::span<const Strategy> table = strategies());

}  // namespace longhaul::parallel
