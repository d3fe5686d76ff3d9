// Plans that compose affine maps of a state over all ranks, in one table: linear attention. A pure
// function like the strategies of softmax attention (strategy.h), run by the same executor.
//
// The home slot (slot 0) holds a map for each of this rank's runs of tokens, in the layout's order:
// kState, its sums, and kDecay. A state of zeros goes through all maps in global order, for
// backward from the last to the first. Slot 1 receives what enters each run, and what leaves it
// takes the place of its sums at home. The heads of the plans are `kv_heads`.
//
// To add a method: a planner, a row in scan_methods() and a section in parallel/ALGORITHMS.md; the
// properties, the parity suite and the benchmarks iterate the table.
#pragma once

#include <span>
#include <string_view>

#include "parallel/plan/plan.h"
#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

// Slots of every scan plan that the caller knows.
inline constexpr int kMapsSlot = 0, kEnteringSlot = 1;

struct ScanMethod {
  std::string_view name;    // "all_gather"
  std::string_view source;  // of the algorithm
  // heads: the model's heads; plans do not depend on the dimensions. Throws Error(kConfig) for a
  // layout whose runs have a stride.
  Plan (*plan)(const TokenLayout& layout, int64_t heads, Direction direction, int rank);
};

std::span<const ScanMethod> scan_methods();
// Throws Error(kConfig) with the known names if there is none of this name.
const ScanMethod& scan_method(std::string_view name);

}  // namespace longhaul::parallel
