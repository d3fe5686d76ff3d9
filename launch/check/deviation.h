// How far what ranks compute together is from what one rank computes, and how far it may be.
//
// - In f64 the two must be equal to rounding.
// - In the run's dtype the error against one rank in f64, on the same rounded operands, may be at
//   most twice that of one rank in the same dtype.
//
// A tensor's error is the norm of its difference over its own norm, for each head; the worst head
// and sample count.
#pragma once

#include <span>
#include <string>

#include "dist/group.h"
#include "kernels/core/dtype.h"

namespace longhaul::launch {

struct Deviation {
  std::string tensor;  // out, lse, dq, dk, dv, ...
  DType dtype = DType::kF64;
  double max_relative_error = 0;
  double limit = 0;
  // Also if it is not a number.
  bool too_large() const { return !(max_relative_error <= limit); }
};

// A sample's error of a tensor; `own` is that of one rank, 0 in f64. Of several samples, the one
// stays in `worst` that comes closest to its limit.
void keep_worst(Deviation& worst, const std::string& tensor, DType dtype, double error, double own);

// What was checked.
struct Subject {
  std::string name;     // "strategy ring on layout zigzag"
  std::string setting;  // what chooses it: "parallel.strategy"
};

// Collective over `world`: throws Error(kNumerics) on every rank, naming tensor, deviation, limit
// and subject, if a deviation on any is too large.
void require_small(dist::Group& world, const Subject& subject,
                   std::span<const Deviation> deviations);

// "strategy ring on layout zigzag equals one rank: largest deviation 52 % of its limit (dk in
// bf16)"
std::string summary(const Subject& subject, std::span<const Deviation> deviations);

}  // namespace longhaul::launch
