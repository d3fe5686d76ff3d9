#include "parallel/scan/kinds.h"

#include <array>

#include "kernels/core/error.h"
#include "kernels/delta_rule.h"
#include "kernels/gated_linear_attention.h"

namespace longhaul::parallel {

namespace {

// --- a decay per head

kernels::LinearTokens decayed(const RunRows& rows, std::span<const double> slopes) {
  return {.runs = rows.runs, .document_begins = rows.document_begins, .slopes = slopes};
}

TensorView per_head(const TensorView& decay) { return decay.reshape({decay.dim(0), decay.dim(1)}); }

void decay_maps(const Context& ctx, const RunRows& rows, const LinearAttentionForwardArgs& args,
                const TensorView& sums, const TensorView& decay) {
  kernels::linear_attention_maps(ctx, {.tokens = decayed(rows, args.slopes),
                                       .k = args.k,
                                       .v = args.v,
                                       .sums = sums,
                                       .log_decay = per_head(decay)});
}

void decay_forward(const Context& ctx, const RunRows& rows, const LinearAttentionForwardArgs& args,
                   const ConstTensorView& states) {
  kernels::linear_attention_forward(ctx, {.tokens = decayed(rows, args.slopes),
                                          .q = args.q,
                                          .k = args.k,
                                          .v = args.v,
                                          .state_in = states,
                                          .out_acc = args.out_acc});
}

void decay_add_states(const Context& ctx, const RunRows& rows,
                      const LinearAttentionForwardArgs& args, const ConstTensorView& states) {
  kernels::linear_attention_add_out(ctx, {.tokens = decayed(rows, args.slopes),
                                          .q = args.q,
                                          .state_in = states,
                                          .out_acc = args.out_acc});
}

void decay_backward_maps(const Context& ctx, const RunRows& rows,
                         const LinearAttentionBackwardArgs& args, const TensorView& sums,
                         const TensorView& decay) {
  kernels::linear_attention_backward_maps(ctx, {.tokens = decayed(rows, args.slopes),
                                                .q = args.q,
                                                .dout = args.dout,
                                                .sums = sums,
                                                .log_decay = per_head(decay)});
}

void decay_backward(const Context& ctx, const RunRows& rows,
                    const LinearAttentionBackwardArgs& args, const ConstTensorView& states,
                    const ConstTensorView& dstates) {
  kernels::linear_attention_backward(ctx, {.tokens = decayed(rows, args.slopes),
                                           .q = args.q,
                                           .k = args.k,
                                           .v = args.v,
                                           .dout = args.dout,
                                           .state_in = states,
                                           .dstate_out = dstates,
                                           .dq_acc = args.dq_acc,
                                           .dk_acc = args.dk_acc,
                                           .dv_acc = args.dv_acc});
}

void decay_add_dstates(const Context& ctx, const RunRows& rows,
                       const LinearAttentionBackwardArgs& args, const ConstTensorView& dstates) {
  kernels::linear_attention_add_dk_dv(ctx, {.tokens = decayed(rows, args.slopes),
                                            .k = args.k,
                                            .v = args.v,
                                            .dstate_out = dstates,
                                            .dk_acc = args.dk_acc,
                                            .dv_acc = args.dv_acc});
}

// --- a gate per key dimension

kernels::GatedTokens gated(const RunRows& rows, const ConstTensorView& log_gate) {
  return {.runs = rows.runs, .document_begins = rows.document_begins, .log_gate = log_gate};
}

void gated_maps(const Context& ctx, const RunRows& rows, const LinearAttentionForwardArgs& args,
                const TensorView& sums, const TensorView& decay) {
  kernels::gated_linear_attention_maps(ctx, {.tokens = gated(rows, args.log_gate),
                                             .k = args.k,
                                             .v = args.v,
                                             .sums = sums,
                                             .log_decay = decay});
}

void gated_forward(const Context& ctx, const RunRows& rows, const LinearAttentionForwardArgs& args,
                   const ConstTensorView& states) {
  kernels::gated_linear_attention_forward(ctx, {.tokens = gated(rows, args.log_gate),
                                                .q = args.q,
                                                .k = args.k,
                                                .v = args.v,
                                                .state_in = states,
                                                .out_acc = args.out_acc});
}

void gated_add_states(const Context& ctx, const RunRows& rows,
                      const LinearAttentionForwardArgs& args, const ConstTensorView& states) {
  kernels::gated_linear_attention_add_out(ctx, {.tokens = gated(rows, args.log_gate),
                                                .q = args.q,
                                                .state_in = states,
                                                .out_acc = args.out_acc});
}

void gated_backward_maps(const Context& ctx, const RunRows& rows,
                         const LinearAttentionBackwardArgs& args, const TensorView& sums,
                         const TensorView& decay) {
  kernels::gated_linear_attention_backward_maps(ctx, {.tokens = gated(rows, args.log_gate),
                                                      .q = args.q,
                                                      .dout = args.dout,
                                                      .sums = sums,
                                                      .log_decay = decay});
}

void gated_backward(const Context& ctx, const RunRows& rows,
                    const LinearAttentionBackwardArgs& args, const ConstTensorView& states,
                    const ConstTensorView& dstates) {
  kernels::gated_linear_attention_backward(ctx, {.tokens = gated(rows, args.log_gate),
                                                 .q = args.q,
                                                 .k = args.k,
                                                 .v = args.v,
                                                 .dout = args.dout,
                                                 .state_in = states,
                                                 .dstate_out = dstates,
                                                 .dq_acc = args.dq_acc,
                                                 .dk_acc = args.dk_acc,
                                                 .dv_acc = args.dv_acc});
}

void gated_add_dstates(const Context& ctx, const RunRows& rows,
                       const LinearAttentionBackwardArgs& args, const ConstTensorView& dstates) {
  kernels::gated_linear_attention_add_dk_dv(ctx, {.tokens = gated(rows, args.log_gate),
                                                  .k = args.k,
                                                  .v = args.v,
                                                  .dstate_out = dstates,
                                                  .dk_acc = args.dk_acc,
                                                  .dv_acc = args.dv_acc});
}

void gated_complete(const Context& ctx, const RunRows& rows,
                    const LinearAttentionBackwardArgs& args, const ConstTensorView& states,
                    const ConstTensorView& leaving) {
  kernels::gated_linear_attention_gate_gradient(ctx, {.tokens = gated(rows, args.log_gate),
                                                      .q = args.q,
                                                      .k = args.k,
                                                      .dq = args.dq_acc,
                                                      .dk = args.dk_acc,
                                                      .state_in = states,
                                                      .dstate_in = leaving,
                                                      .dlog_gate = args.dlog_gate});
}

// --- the gated delta rule: what a token writes depends on the state, so nothing can be added

kernels::DeltaTokens delta(const RunRows& rows, const ConstTensorView& log_gate,
                           const ConstTensorView& beta) {
  return {.runs = rows.runs,
          .document_begins = rows.document_begins,
          .log_gate = log_gate,
          .beta = beta};
}

TensorView matrices(const TensorView& decay, const ConstTensorView& k) {
  return decay.reshape({decay.dim(0), decay.dim(1), k.dim(2), k.dim(2)});
}

void delta_maps(const Context& ctx, const RunRows& rows, const LinearAttentionForwardArgs& args,
                const TensorView& sums, const TensorView& decay) {
  kernels::delta_rule_maps(ctx, {.tokens = delta(rows, args.log_gate, args.beta),
                                 .k = args.k,
                                 .v = args.v,
                                 .sums = sums,
                                 .transition = matrices(decay, args.k)});
}

void delta_forward(const Context& ctx, const RunRows& rows, const LinearAttentionForwardArgs& args,
                   const ConstTensorView& states) {
  kernels::delta_rule_forward(ctx, {.tokens = delta(rows, args.log_gate, args.beta),
                                    .q = args.q,
                                    .k = args.k,
                                    .v = args.v,
                                    .state_in = states,
                                    .out_acc = args.out_acc});
}

void delta_backward_maps(const Context& ctx, const RunRows& rows,
                         const LinearAttentionBackwardArgs& args, const TensorView& sums,
                         const TensorView& decay) {
  kernels::delta_rule_backward_maps(ctx, {.tokens = delta(rows, args.log_gate, args.beta),
                                          .q = args.q,
                                          .k = args.k,
                                          .dout = args.dout,
                                          .sums = sums,
                                          .transition = matrices(decay, args.k)});
}

void delta_backward(const Context& ctx, const RunRows& rows,
                    const LinearAttentionBackwardArgs& args, const ConstTensorView& states,
                    const ConstTensorView& dstates) {
  kernels::delta_rule_backward(ctx, {.tokens = delta(rows, args.log_gate, args.beta),
                                     .q = args.q,
                                     .k = args.k,
                                     .v = args.v,
                                     .dout = args.dout,
                                     .state_in = states,
                                     .dstate_out = dstates,
                                     .dq_acc = args.dq_acc,
                                     .dk_acc = args.dk_acc,
                                     .dv_acc = args.dv_acc,
                                     .dlog_gate = args.dlog_gate,
                                     .dbeta = args.dbeta});
}

constexpr std::array kParts{
    LinearKindParts{.kind = LinearKind::kDecay,
                    .name = "linear attention with a decay per head",
                    .decay = kernels::StateDecay::kScalar,
                    .maps = decay_maps,
                    .forward = decay_forward,
                    .add_states = decay_add_states,
                    .backward_maps = decay_backward_maps,
                    .backward = decay_backward,
                    .add_dstates = decay_add_dstates,
                    .complete = nullptr},
    LinearKindParts{.kind = LinearKind::kGated,
                    .name = "gated linear attention",
                    .decay = kernels::StateDecay::kDiagonal,
                    .maps = gated_maps,
                    .forward = gated_forward,
                    .add_states = gated_add_states,
                    .backward_maps = gated_backward_maps,
                    .backward = gated_backward,
                    .add_dstates = gated_add_dstates,
                    .complete = gated_complete},
    LinearKindParts{.kind = LinearKind::kDeltaRule,
                    .name = "the gated delta rule",
                    .decay = kernels::StateDecay::kDense,
                    .maps = delta_maps,
                    .forward = delta_forward,
                    .add_states = nullptr,
                    .backward_maps = delta_backward_maps,
                    .backward = delta_backward,
                    .add_dstates = nullptr,
                    .complete = nullptr},
};

}  // namespace

const LinearKindParts& parts_of(LinearKind kind) {
  for (const LinearKindParts& parts : kParts) {
    if (parts.kind == kind) return parts;
  }
  check_failed(__FILE__, __LINE__, "kind is one of LinearKind");
}

}  // namespace longhaul::parallel
