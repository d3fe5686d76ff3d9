// LinearAttention on a group of ranks against the recurrence, token by token, in fp64.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/group.h"
#include "parallel/scan/linear_attention.h"
#include "tests/kernels/linear_attention_reference.h"

namespace longhaul::test {

struct LinearCase {
  std::string method = "all_gather";
  std::string layout = "zigzag";
  int64_t tokens = 61;
  int64_t heads = 3, head_dim = 5, value_dim = 4;
  parallel::Documents documents = parallel::Documents::whole(61);
  DType dtype = DType::kF64;
  bool initial_state = false, final_state = false;
  std::string name() const;
};

// Of all tokens; values that bf16 holds exactly. state_in is what enters the first token: zeros
// without an initial state.
kernels::testing::LinearOperands operands_of(const LinearCase& c, uint64_t seed);
std::vector<double> slopes_of(const LinearCase& c);
kernels::testing::LinearTruth truth_of(const LinearCase& c,
                                       const kernels::testing::LinearOperands& x);

// Of the case's documents.
parallel::TokenLayout layout_of(const LinearCase& c, int ranks);

// This rank's results, [rows, heads, dim], and the state after the last token.
struct LinearResult {
  std::vector<double> out, dq, dk, dv;
  std::vector<double> final_state{};
  int64_t received_bytes[2] = {};  // by direction; without the final state
  bool operator==(const LinearResult&) const = default;
};

// Collective: forward and backward on poisoned memory that was measured before the sample.
LinearResult run_linear_attention(dist::Group& group, const LinearCase& c,
                                  const kernels::testing::LinearOperands& x);

// Collective. Error norms over all ranks, relative to the truth's norms (to 1 where those are
// less): out, dq, dk, dv, final_state.
std::vector<double> errors(dist::Group& group, const LinearCase& c,
                           const kernels::testing::LinearTruth& truth, const LinearResult& result);

}  // namespace longhaul::test
