// Scans that leave out what has decayed, where a decay is known before the run (a slope per head).
// Not exact: see parallel/ALGORITHMS.md, "Decay-aware scans", for the bound.
//
// What leaves a run reaches the run after the next only through the next one's decay. Heads whose
// states fall below a bound over every run that they would pass through take what the run before
// has of itself, from its owner, and nothing else; all others are scanned by a method.
#pragma once

#include <span>
#include <vector>

#include "parallel/plan/scan.h"

namespace longhaul::parallel {

// By head: whether e^(-slope x tokens) < bound for each run but the first and the last of `runs`
// (ranges of tokens in global order). None if bound is 0, or no state passes through a run.
std::vector<bool> forgetting_heads(const TokenLayout& runs, std::span<const double> slopes,
                                   double bound);

// What the heads that forget leave out, at most.
struct DecayError {
  int64_t heads = 0;  // that forget
  // The norm of what a state lacks, over the norm of the state that entered the run before it.
  double of_state = 0;
  // What an element-wise sum over tokens lacks: |out_i| <= this |q_i| max|k| max|v|, and likewise
  // |dq_i| (of dout_i, v, k), |dk_j| (of v_j, q, dout) and |dv_j| (of k_j, q, dout), in 2-norms of
  // a head's rows, without an initial state.
  double of_output = 0;
};
DecayError decay_error(const TokenLayout& runs, std::span<const double> slopes, double bound);

// The method's plan, where `forgets` says for each head whether it forgets; empty: none does, and
// the plan is the method's own.
Plan plan_scan(const ScanMethod& method, const TokenLayout& layout, int64_t heads,
               const std::vector<bool>& forgets, Direction direction, int rank);

}  // namespace longhaul::parallel
