#include "kernels/gated_linear_attention.h"

#include <utility>

#include "kernels/linear_frame.h"

namespace longhaul::kernels {

namespace {

struct Frame : LinearFrame {
  template <class... Operands>
  explicit Frame(const GatedTokens& tokens, Operands... operands)
      : LinearFrame("gated linear attention", operands...) {
    expect_tokens(tokens.runs, tokens.document_begins);
  }

  void expect_gates(const GatedTokens& tokens) const {
    expect_sums(tokens.log_gate, "log_gate", head_dim);
  }
  void expect_maps(ConstTensorView sums, ConstTensorView log_decay) const {
    expect_state(sums, "sums");
    expect_accumulators(log_decay, "log_decay", {runs, heads, head_dim});
  }
  const GatedLinearAttentionKernel& row(const Context& ctx) const {
    return choose(ctx, &Backend::gated_linear_attention);
  }
};

}  // namespace

void gated_linear_attention_forward(const Context& ctx, const GatedLinearAttentionForward& args) {
  const Frame frame(args.tokens, args.q, "q", args.v, "v");
  frame.expect_gates(args.tokens);
  frame.expect_key_like(args.k, "k");
  frame.expect_sums(args.out_acc, "out_acc", frame.value_dim);
  frame.expect_state_if_present(args.state_in, "state_in");
  frame.expect_state_if_present(args.state_out, "state_out");
  frame.row(ctx).forward(ctx, args);
}

void gated_linear_attention_backward(const Context& ctx, const GatedLinearAttentionBackward& args) {
  const Frame frame(args.tokens, args.q, "q", args.v, "v");
  frame.expect_gates(args.tokens);
  frame.expect_key_like(args.k, "k");
  frame.expect_value_like(args.dout, "dout");
  frame.expect_sums(args.dq_acc, "dq_acc", frame.head_dim);
  frame.expect_sums(args.dk_acc, "dk_acc", frame.head_dim);
  frame.expect_sums(args.dv_acc, "dv_acc", frame.value_dim);
  frame.expect_state_if_present(args.state_in, "state_in");
  frame.expect_state_if_present(args.dstate_out, "dstate_out");
  frame.expect_state_if_present(args.dstate_in, "dstate_in");
  frame.row(ctx).backward(ctx, args);
}

void gated_linear_attention_maps(const Context& ctx, const GatedLinearAttentionMaps& args) {
  const Frame frame(args.tokens, args.k, "k", args.v, "v");
  frame.expect_gates(args.tokens);
  frame.expect_maps(args.sums, args.log_decay);
  frame.row(ctx).maps(ctx, args);
}

void gated_linear_attention_backward_maps(const Context& ctx,
                                          const GatedLinearAttentionBackwardMaps& args) {
  const Frame frame(args.tokens, args.q, "q", args.dout, "dout");
  frame.expect_gates(args.tokens);
  frame.expect_maps(args.sums, args.log_decay);
  frame.row(ctx).backward_maps(ctx, args);
}

void gated_linear_attention_add_out(const Context& ctx, const GatedLinearAttentionAddOut& args) {
  const Frame frame(args.tokens, args.q, "q", args.out_acc.rank() == 3 ? args.out_acc.dim(2) : 0);
  frame.expect_gates(args.tokens);
  frame.expect_state(args.state_in, "state_in");
  frame.expect_sums(args.out_acc, "out_acc", frame.value_dim);
  frame.row(ctx).add_out(ctx, args);
}

void gated_linear_attention_add_dq(const Context& ctx, const GatedLinearAttentionAddDq& args) {
  // Here the given operand runs along Dv and the result along D.
  Frame frame(args.tokens, args.dout, "dout", args.dq_acc.rank() == 3 ? args.dq_acc.dim(2) : 0);
  std::swap(frame.head_dim, frame.value_dim);
  frame.expect_gates(args.tokens);
  frame.expect_state(args.state_in, "state_in");
  frame.expect_sums(args.dq_acc, "dq_acc", frame.head_dim);
  frame.row(ctx).add_dq(ctx, args);
}

void gated_linear_attention_add_dk_dv(const Context& ctx, const GatedLinearAttentionAddDkDv& args) {
  const Frame frame(args.tokens, args.k, "k", args.v, "v");
  frame.expect_gates(args.tokens);
  frame.expect_state(args.dstate_out, "dstate_out");
  frame.expect_sums(args.dk_acc, "dk_acc", frame.head_dim);
  frame.expect_sums(args.dv_acc, "dv_acc", frame.value_dim);
  frame.row(ctx).add_dk_dv(ctx, args);
}

void gated_linear_attention_gate_gradient(const Context& ctx,
                                          const GatedLinearAttentionGateGradient& args) {
  const int64_t value_dim = args.state_in.rank() == 4 ? args.state_in.dim(3) : 1;
  const Frame frame(args.tokens, args.q, "q", value_dim);
  frame.expect_gates(args.tokens);
  frame.expect_key_like(args.k, "k");
  frame.expect_sums(args.dq, "dq", frame.head_dim);
  frame.expect_sums(args.dk, "dk", frame.head_dim);
  frame.expect_sums(args.dlog_gate, "dlog_gate", frame.head_dim);
  frame.expect_state_if_present(args.state_in, "state_in");
  if (args.state_in.rank() > 0) frame.expect_state_if_present(args.dstate_in, "dstate_in");
  frame.row(ctx).gate_gradient(ctx, args);
}

}  // namespace longhaul::kernels
