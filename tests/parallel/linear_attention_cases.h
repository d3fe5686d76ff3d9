// LinearAttention on a group of ranks against the recurrence, token by token, in fp64.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dist/group.h"
#include "parallel/scan/linear_attention.h"

namespace longhaul::test {

struct LinearCase {
  parallel::LinearKind kind = parallel::LinearKind::kDecay;
  std::string method = "all_gather";
  std::string layout = "zigzag";
  int64_t tokens = 61;
  int64_t heads = 3, head_dim = 5, value_dim = 4;
  parallel::Documents documents = parallel::Documents::whole(61);
  DType dtype = DType::kF64;
  bool causal = true;
  bool initial_state = false, final_state = false;
  double decay_bound = 0;
  bool decays = true;  // kDecay: else all slopes are 0
  std::string name() const;
};

// Of all tokens, [T, H, D or Dv]; gates as the kind has them, else empty. Values that bf16 holds
// exactly. state_in is what enters the first token: zeros without an initial state.
struct LinearInputs {
  std::vector<double> q, k, v, dout, state_in;
  std::vector<double> log_gate, beta;
};
LinearInputs inputs_of(const LinearCase& c, uint64_t seed);
std::vector<double> slopes_of(const LinearCase& c);

// The results of all tokens, or, of a group, this rank's rows; and the state after the last token.
struct LinearOutputs {
  std::vector<double> out, dq, dk, dv;
  std::vector<double> dlog_gate{}, dbeta{};
  std::vector<double> final_state{};
  bool operator==(const LinearOutputs&) const = default;
};
LinearOutputs truth_of(const LinearCase& c, const LinearInputs& x);
// Of a decay per head, pair by pair: token i has a^|i - j| of token j of its document in head h, if
// counts(i, j, h).
LinearOutputs truth_of_pairs(const LinearCase& c, const LinearInputs& x,
                             const std::function<bool(int64_t, int64_t, int64_t)>& counts);

// Of the case's documents.
parallel::TokenLayout layout_of(const LinearCase& c, int ranks);

struct LinearResult {
  LinearOutputs outputs;
  int64_t received_bytes[2] = {};  // by direction; without the final state
  bool operator==(const LinearResult&) const = default;
};

// Collective: forward and backward, of layer 3, on poisoned memory that was measured before the
// sample. before: called ahead of each, after the measuring.
LinearResult run_linear_attention(dist::Group& group, const LinearCase& c, const LinearInputs& x,
                                  const std::function<void(parallel::Direction)>& before = {});

// Collective. Error norms over all ranks, relative to the truth's norms (to 1 where those are
// less): out, dq, dk, dv, dlog_gate, dbeta, final_state; 0 for what the kind has not.
std::vector<double> errors(dist::Group& group, const LinearCase& c, const LinearOutputs& truth,
                           const LinearResult& result);

}  // namespace longhaul::test
