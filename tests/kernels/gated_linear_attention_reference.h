// The truth for gated linear attention: the recurrence, token by token, in fp64, and its reverse.
// Shares nothing with the kernels, neither blocks nor products of gates; its gradients are judged
// by finite differences (gated_linear_attention_test.cc).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/linear_attention.h"

namespace longhaul::kernels::testing {

struct GatedShape {
  int64_t tokens = 0, heads = 1, head_dim = 0, value_dim = 0;
};

struct GatedOperands {
  std::vector<double> q, k, v, dout, log_gate;  // [T, H, D or Dv]
  std::vector<double> state_in, dstate_out;     // [R, H, D, Dv]
};

struct GatedTruth {
  std::vector<double> out, state_out;  // rows outside runs: 0
  std::vector<double> dq, dk, dv, dlog_gate, dstate_in;
};

GatedTruth gated_linear_attention_truth(const GatedShape& shape, std::span<const LinearRun> runs,
                                        std::span<const int64_t> document_begins,
                                        const GatedOperands& x);

}  // namespace longhaul::kernels::testing
