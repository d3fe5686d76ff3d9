// The gated delta rule (Yang et al. 2025, "Gated Delta Networks: Improving Mamba2 with Delta
// Rule"): linear attention whose state forgets what it held under a key before it writes there.
// Forward, backward, and the maps that ranks exchange.
//
//   q, k [T, H, D]   v, dout [T, H, Dv]          one dtype: bf16, f32 or f64; last dimension dense
//   log_gate, beta, dlog_gate, dbeta [T, H]      accumulator type, dense
//   out_acc, dv_acc [T, H, Dv]   dq_acc, dk_acc [T, H, D]      accumulator type, dense
//   states and their gradients [R, H, D, Dv]                   accumulator type, dense, one per run
//
// For each head, with a_t = e^log_gate[t], log_gate <= 0, tokens t of a document in order:
//
//   S_t = a_t (I - beta_t k_t k_t^T) S_(t-1) + beta_t k_t v_t^T        o_t = S_t^T q_t
//
// With log_gate = 0 it is the delta rule of DeltaNet, with beta = 1 and keys of length 1 the state
// then answers k_t with v_t. Keys are used as they are: beta k^T k <= 2 keeps states bounded, which
// is the caller's to see to (usually keys of length 1 and 0 <= beta <= 1). Neither that nor the
// sign of gates is checked. -inf is a gate, too: it forgets all.
//
// Runs, documents, state_in and state_out are those of kernels/linear_attention.h, and so are what
// may be absent, the order of reductions, errors and NaN. The map of a run has a dense transition,
//
//   state_out[r] = transition[r] state_in[r] + sums[r],        transition [R, H, D, D],
//
// all zeros if a document begins in the run: then state_in does not matter and may hold anything.
// Backward uses its transpose,
//
//   dstate_in[r] = transition[r]^T dstate_out[r] + backward sums[r].
//
// What ranks do with it: maps(), the exchange, forward() with the state that it brought; then
// backward_maps(), the exchange, backward() with both. Nothing can be added afterwards: a value
// that is written depends on the state before it. Causal only.
//
// Computed in blocks of c = kLinearBlock tokens in the WY form (section 3.3 of the paper): with
// decays D_ij = a_(j+1) ... a_i, lambda_i = a_1 ... a_i, and S before the block,
//
//   (I + diag(beta) (D . K K^T below the diagonal)) U = diag(beta) (V - diag(lambda) K S)
//   O = diag(lambda) Q S + (D . Q K^T) U              S <- lambda_c S + (diag(D_cj) K)^T U
//
// Backward keeps the states of some blocks in scratch memory and makes the others again. Decays are
// products of gates in f64. Useful products, in FLOPs per token and head:
//
//   forward    6 D Dv + c (2 D + 2 Dv)    K S, Q S, K^T U; K K^T, Q K^T; the solution, P U
//   backward  16 D Dv + c (6 D + 5 Dv)    K S, K^T U again, K G, U G^T, dO S^T, dR S^T, Q^T dO,
//                 K^T dR; K K^T, Q K^T, dQ and thrice dK from dO U^T, dR U^T; U, dU, dR, dO U^T,
//                 dR U^T
//
// Threads share heads and runs: one head of one run takes one thread. As for gated linear
// attention, the gradient of a gate is a sum of at most c terms q . dq and k . dk that begins at
// state . gradient: it errs relative to those.
#pragma once

#include "kernels/linear_attention.h"

namespace longhaul::kernels {

struct DeltaTokens {
  std::span<const LinearRun> runs;           // R, ascending, disjoint
  std::span<const int64_t> document_begins;  // rows where a document begins, strictly ascending
  ConstTensorView log_gate, beta;
};

// Views of rank 0 (a default TensorView) stand for what is absent. Incoming and outgoing states may
// share their memory.
struct DeltaRuleForward {
  DeltaTokens tokens;
  ConstTensorView q, k, v;
  ConstTensorView state_in = {};  // or absent
  TensorView out_acc;             // written
  TensorView state_out = {};      // written, or absent
};

struct DeltaRuleBackward {
  DeltaTokens tokens;
  ConstTensorView q, k, v, dout;
  ConstTensorView state_in = {};      // as in forward, or absent
  ConstTensorView dstate_out = {};    // or absent
  TensorView dq_acc, dk_acc, dv_acc;  // +=
  TensorView dlog_gate, dbeta;        // written
  TensorView dstate_in = {};          // written, or absent
};

// The maps of all runs.
struct DeltaRuleMaps {
  DeltaTokens tokens;
  ConstTensorView k, v;
  TensorView sums, transition;  // written
};
// The same transitions; absent if they are not wanted again.
struct DeltaRuleBackwardMaps {
  DeltaTokens tokens;
  ConstTensorView q, k, dout;
  TensorView sums;             // written
  TensorView transition = {};  // written, or absent
};

void delta_rule_forward(const Context&, const DeltaRuleForward&);
void delta_rule_backward(const Context&, const DeltaRuleBackward&);
void delta_rule_maps(const Context&, const DeltaRuleMaps&);
void delta_rule_backward_maps(const Context&, const DeltaRuleBackwardMaps&);

// One implementation: a row of a backend's table (kernels/backend.h), the best one first.
struct DeltaRuleKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();  // can this machine run it?
  bool (*supports)(int64_t head_dim, int64_t value_dim);
  void (*forward)(const Context&, const DeltaRuleForward&);
  void (*backward)(const Context&, const DeltaRuleBackward&);
  void (*maps)(const Context&, const DeltaRuleMaps&);
  void (*backward_maps)(const Context&, const DeltaRuleBackwardMaps&);
};

}  // namespace longhaul::kernels
