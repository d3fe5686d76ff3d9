// The truth for linear attention: the recurrence, token by token, in fp64. Shares nothing with the
// kernels, neither blocks nor powers of the decay.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/linear_attention.h"

namespace longhaul::kernels::testing {

struct LinearShape {
  int64_t tokens = 0, heads = 1, head_dim = 0, value_dim = 0;
};

struct LinearOperands {
  std::vector<double> q, k, v, dout;         // [T, H, D or Dv]
  std::vector<double> state_in, dstate_out;  // [R, H, D, Dv]
};

struct LinearTruth {
  std::vector<double> out, state_out;  // rows outside runs: 0
  std::vector<double> dq, dk, dv, dstate_in;
};

LinearTruth linear_attention_truth(const LinearShape& shape, const LinearTokens& tokens,
                                   const LinearOperands& x);

}  // namespace longhaul::kernels::testing
