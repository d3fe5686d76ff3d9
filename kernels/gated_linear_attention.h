// Gated linear attention ("GLA", Yang et al. 2024, "Gated Linear Attention Transformers with
// Hardware-Efficient Training"): linear attention whose decay depends on the token, the head and
// the key dimension. Forward and backward, in parts that ranks can share.
//
//   q, k [T, H, D]   v, dout [T, H, Dv]          one dtype: bf16, f32 or f64; last dimension dense
//   log_gate, dlog_gate [T, H, D]                accumulator type, dense
//   out_acc, dv_acc [T, H, Dv]   dq_acc, dk_acc [T, H, D]      accumulator type, dense
//   states and their gradients [R, H, D, Dv]                   accumulator type, dense, one per run
//
// For each head, with gates g_t = log_gate[t] <= 0, tokens t of a document in order:
//
//   S_t = diag(e^g_t) S_(t-1) + k_t v_t^T        o_t = S_t^T q_t
//
// The gate of a document's first token meets no state. -inf is a gate, too: it forgets all. That
// gates are not positive is not checked; above 0, states grow and may overflow.
//
// Runs, documents, state_in and state_out are those of kernels/linear_attention.h, and so are the
// parts, what may be absent, the order of reductions, errors and NaN; here the map of a run has a
// decay for each key dimension,
//
//   state_out[r] = diag(e^log_decay[r]) state_in[r] + sums[r],    log_decay [R, H, D],
//
// the sum of the run's gates, or -inf if a document begins in the run. Causal only.
//
// Gradients of gates are made from totals. With dq and dk complete, and with x . y the product for
// each key dimension,
//
//   dg_(t+1) = dg_t + k_t . dk_t - q_t . dq_t
//
// in a document, from dg = 0 at its first token, or from state_in . dstate_in, summed over Dv, at a
// run's first. So one call, gated_linear_attention_gate_gradient(), makes dlog_gate after dq and dk
// are complete: after backward() alone, or after backward(), add_dq() and add_dk_dv(). Of n tokens
// since the sum began, it errs by about sqrt(n) roundings of q . dq, and not relative to itself; it
// begins anew, exactly, where a gate lets nothing pass (e^g = 0). Nothing is divided by a gate.
//
// Computed in blocks of kLinearBlock tokens (section 4 of the paper). Products of tokens in
// different sub-blocks of kGatedSubBlock are matrix products of operands that are decayed up to the
// border between them; those in one sub-block go through the gates one by one. Decays are only ever
// products of gates, so that no gate overflows. Useful products are those of
// kernels/linear_attention.h, FLOPs per token and head, c = kLinearBlock:
//
//   forward    4 D Dv + c (D + Dv)          backward  10 D Dv + c (3 D + 2 Dv)
#pragma once

#include "kernels/linear_attention.h"

namespace longhaul::kernels {

inline constexpr int64_t kGatedSubBlock = 16;

struct GatedTokens {
  std::span<const LinearRun> runs;           // R, ascending, disjoint
  std::span<const int64_t> document_begins;  // rows where a document begins, strictly ascending
  ConstTensorView log_gate;
};

struct GatedLinearAttentionForward {
  GatedTokens tokens;
  ConstTensorView q, k, v;
  ConstTensorView state_in = {};  // or absent
  TensorView out_acc;             // written
  TensorView state_out = {};      // written, or absent
};

struct GatedLinearAttentionBackward {
  GatedTokens tokens;
  ConstTensorView q, k, v, dout;
  ConstTensorView state_in = {};      // as in forward, or absent
  ConstTensorView dstate_out = {};    // or absent
  TensorView dq_acc, dk_acc, dv_acc;  // +=
  TensorView dstate_in = {};          // written, or absent
};

// The maps of all runs, from the operands that make up the state. log_decay [R, H, D].
struct GatedLinearAttentionMaps {
  GatedTokens tokens;
  ConstTensorView k, v;
  TensorView sums, log_decay;  // written
};
// dstate_in = diag(e^log_decay) dstate_out + sums.
struct GatedLinearAttentionBackwardMaps {
  GatedTokens tokens;
  ConstTensorView q, dout;
  TensorView sums, log_decay;  // written
};

// The parts of forward and backward that wait for other ranks: each adds what a call with the
// incoming state or gradient has more than one without.
struct GatedLinearAttentionAddOut {
  GatedTokens tokens;
  ConstTensorView q, state_in;
  TensorView out_acc;  // +=
};
struct GatedLinearAttentionAddDq {
  GatedTokens tokens;
  ConstTensorView dout, state_in;
  TensorView dq_acc;  // +=
};
struct GatedLinearAttentionAddDkDv {
  GatedTokens tokens;
  ConstTensorView k, v, dstate_out;
  TensorView dk_acc, dv_acc;  // +=
};

// The gradient of the gates from complete gradients. dq and dk hold those of this attention alone.
// state_in and dstate_in are those of the complete sequence: where ranks share it, dstate_in is the
// map of backward_maps() applied to the gradient that came from the right. Either absent: zeros,
// right where no state enters or none is used.
struct GatedLinearAttentionGateGradient {
  GatedTokens tokens;
  ConstTensorView q, k;
  ConstTensorView dq, dk;                         // accumulator type, dense
  ConstTensorView state_in = {}, dstate_in = {};  // [R, H, D, Dv], or absent
  TensorView dlog_gate;                           // written
};

void gated_linear_attention_forward(const Context&, const GatedLinearAttentionForward&);
void gated_linear_attention_backward(const Context&, const GatedLinearAttentionBackward&);
void gated_linear_attention_maps(const Context&, const GatedLinearAttentionMaps&);
void gated_linear_attention_backward_maps(const Context&, const GatedLinearAttentionBackwardMaps&);
void gated_linear_attention_add_out(const Context&, const GatedLinearAttentionAddOut&);
void gated_linear_attention_add_dq(const Context&, const GatedLinearAttentionAddDq&);
void gated_linear_attention_add_dk_dv(const Context&, const GatedLinearAttentionAddDkDv&);
void gated_linear_attention_gate_gradient(const Context&, const GatedLinearAttentionGateGradient&);

// One implementation: a row of a backend's table (kernels/backend.h), the best one first.
struct GatedLinearAttentionKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();  // can this machine run it?
  bool (*supports)(int64_t head_dim, int64_t value_dim);
  void (*forward)(const Context&, const GatedLinearAttentionForward&);
  void (*backward)(const Context&, const GatedLinearAttentionBackward&);
  void (*maps)(const Context&, const GatedLinearAttentionMaps&);
  void (*backward_maps)(const Context&, const GatedLinearAttentionBackwardMaps&);
  void (*add_out)(const Context&, const GatedLinearAttentionAddOut&);
  void (*add_dq)(const Context&, const GatedLinearAttentionAddDq&);
  void (*add_dk_dv)(const Context&, const GatedLinearAttentionAddDkDv&);
  void (*gate_gradient)(const Context&, const GatedLinearAttentionGateGradient&);
};

}  // namespace longhaul::kernels
