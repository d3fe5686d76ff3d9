// The truth for the gated delta rule: the recurrence, token by token, in fp64, and its reverse.
// Shares nothing with the kernels, neither blocks nor the WY form; its gradients are judged by
// finite differences (delta_rule_test.cc).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/linear_attention.h"

namespace longhaul::kernels::testing {

struct DeltaShape {
  int64_t tokens = 0, heads = 1, head_dim = 0, value_dim = 0;
};

struct DeltaOperands {
  std::vector<double> q, k, v, dout;         // [T, H, D or Dv]
  std::vector<double> log_gate, beta;        // [T, H]
  std::vector<double> state_in, dstate_out;  // [R, H, D, Dv]
};

struct DeltaTruth {
  std::vector<double> out, state_out;  // rows outside runs: 0
  std::vector<double> dq, dk, dv, dlog_gate, dbeta, dstate_in;
};

DeltaTruth delta_rule_truth(const DeltaShape& shape, std::span<const LinearRun> runs,
                            std::span<const int64_t> document_begins, const DeltaOperands& x);

}  // namespace longhaul::kernels::testing
