// Linear attention with a scalar decay per head, forward and backward, in parts that ranks can
// share.
//
//   q, k [T, H, D]   v, dout [T, H, Dv]          one dtype: bf16, f32 or f64; last dimension dense
//   out_acc, dv_acc [T, H, Dv]   dq_acc, dk_acc [T, H, D]      accumulator type
//   states and their gradients [R, H, D, Dv]                   accumulator type, one per run
//
// These are dense, or, where linear_attention_takes_head_slices(), dense but for their first
// dimension: a call may be about some heads of larger tensors, one slice of every operand.
//
// For each head, with decay a = e^-slope, tokens t of a document in order:
//
//   S_t = a S_(t-1) + k_t v_t^T        o_t = S_t^T q_t
//
// so that a token sees itself undecayed; nothing is scaled or normalised. A run is a stretch of
// consecutive tokens in consecutive rows; state_in is the state after the token before it and
// state_out the one after its last token (some public kernels store a times that). Within a run the
// state starts anew where a document begins. Run r is thus an affine map of the state,
//
//   state_out[r] = e^log_decay[r] state_in[r] + sums[r],     log_decay = -slope * length,
//
// or -inf if a document begins in the run: then state_in does not matter and may hold anything.
// Maps compose in any grouping; only differences of exponents are formed, so no slope and no length
// overflows. Backward is the mirror image: dstate_out, the gradient of state_out, enters a run from
// the right, and dstate_in = e^log_decay dstate_out + sums of q and dout.
//
// What ranks do with it (LASP-2, Sun et al. 2025): maps() first, then the exchange of maps,
// meanwhile forward() without state_in, at last add_out() with the state that the exchange brought;
// backward alike. One rank calls forward() and backward() alone. Bidirectional attention without
// decay: slopes of 0 and a run per document; add_out(), add_dq() and add_dk_dv(), to zeros, of the
// sums that maps() and backward_maps() make. Bidirectional attention with decay cannot be expressed
// yet.
//
// Computed in blocks of c = kLinearBlock tokens, as in "Lightning Attention-2" (Qin et al. 2024,
// algorithms 1 and 2). Products that are useful, in FLOPs per token and head:
//
//   forward    4 D Dv + c (D + Dv)        Q S, K^T V; Q K^T, P V below the diagonal
//   backward  10 D Dv + c (3 D + 2 Dv)    K^T V again, Q^T dO, dO S^T, V G^T, K G; P, dP, dQ, dK,
//   dV
//
// Rows outside all runs are neither read nor written. Reductions have a fixed order: the same
// arguments and number of threads give the same bits. All functions throw Error(kInternal) for
// arguments that contradict each other. A NaN reaches tokens after it in its document and, within a
// few rows, tokens before it; maps() and add_...() may leave out what decays to less than the
// smallest normal number, NaN or not.
#pragma once

#include <span>
#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

inline constexpr int64_t kLinearBlock = 64;

struct LinearRun {
  int64_t begin = 0;
  int64_t length = 0;  // may be 0: the identity map
};

// What the rows are. Gated variants will add their gates here.
struct LinearTokens {
  std::span<const LinearRun> runs;           // R, ascending, disjoint
  std::span<const int64_t> document_begins;  // rows where a document begins, strictly ascending
  std::span<const double> slopes;            // H, 0 <= slope < inf
};

// Views of rank 0 (a default TensorView) stand for what is absent: an incoming state or gradient of
// zeros, or a result that is not wanted. Incoming and outgoing states may share their memory.
struct LinearAttentionForward {
  LinearTokens tokens;
  ConstTensorView q, k, v;
  ConstTensorView state_in = {};  // or absent
  TensorView out_acc;             // written
  TensorView state_out = {};      // written, or absent
};

struct LinearAttentionBackward {
  LinearTokens tokens;
  ConstTensorView q, k, v, dout;
  ConstTensorView state_in = {};      // as in forward, or absent
  ConstTensorView dstate_out = {};    // or absent
  TensorView dq_acc, dk_acc, dv_acc;  // +=
  TensorView dstate_in = {};          // written, or absent
  // Rows of runs are written, not added to, which saves to fill them with zeros; others may be too.
  bool overwrite = false;
};

// The maps of all runs, from the operands that make up the state. log_decay [R, H].
struct LinearAttentionMaps {
  LinearTokens tokens;
  ConstTensorView k, v;
  TensorView sums, log_decay;  // written
};
struct LinearAttentionBackwardMaps {
  LinearTokens tokens;
  ConstTensorView q, dout;
  TensorView sums, log_decay;  // written
};

// The parts of forward and backward that wait for other ranks: each adds what a call with the
// incoming state or gradient has more than one without.
struct LinearAttentionAddOut {
  LinearTokens tokens;
  ConstTensorView q, state_in;
  TensorView out_acc;  // +=
};
struct LinearAttentionAddDq {
  LinearTokens tokens;
  ConstTensorView dout, state_in;
  TensorView dq_acc;  // +=
};
struct LinearAttentionAddDkDv {
  LinearTokens tokens;
  ConstTensorView k, v, dstate_out;
  TensorView dk_acc, dv_acc;  // +=
};

// Whether the kernels that are chosen for these take head slices.
bool linear_attention_takes_head_slices(const Context&, DType, int64_t head_dim, int64_t value_dim);

void linear_attention_forward(const Context&, const LinearAttentionForward&);
void linear_attention_backward(const Context&, const LinearAttentionBackward&);
void linear_attention_maps(const Context&, const LinearAttentionMaps&);
void linear_attention_backward_maps(const Context&, const LinearAttentionBackwardMaps&);
void linear_attention_add_out(const Context&, const LinearAttentionAddOut&);
void linear_attention_add_dq(const Context&, const LinearAttentionAddDq&);
void linear_attention_add_dk_dv(const Context&, const LinearAttentionAddDkDv&);

// One implementation: a row of a backend's table (kernels/backend.h), the best one first.
struct LinearAttentionKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();  // can this machine run it?
  bool (*supports)(int64_t head_dim, int64_t value_dim);
  void (*forward)(const Context&, const LinearAttentionForward&);
  void (*backward)(const Context&, const LinearAttentionBackward&);
  void (*maps)(const Context&, const LinearAttentionMaps&);
  void (*backward_maps)(const Context&, const LinearAttentionBackwardMaps&);
  void (*add_out)(const Context&, const LinearAttentionAddOut&);
  void (*add_dq)(const Context&, const LinearAttentionAddDq&);
  void (*add_dk_dv)(const Context&, const LinearAttentionAddDkDv&);
  bool head_slices = false;  // takes them
  bool overwrites = false;   // backward heeds `overwrite`; others get results full of zeros
};

}  // namespace longhaul::kernels
