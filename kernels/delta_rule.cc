#include "kernels/delta_rule.h"

#include "kernels/linear_frame.h"

namespace longhaul::kernels {

namespace {

struct Frame : LinearFrame {
  template <class... Operands>
  explicit Frame(const DeltaTokens& tokens, Operands... operands)
      : LinearFrame("delta rule", operands...) {
    expect_tokens(tokens.runs, tokens.document_begins);
    expect_accumulators(tokens.log_gate, "log_gate", {rows, heads});
    expect_accumulators(tokens.beta, "beta", {rows, heads});
  }

  void expect_transition(ConstTensorView transition) const {
    expect_accumulators(transition, "transition", {runs, heads, head_dim, head_dim});
  }
  const DeltaRuleKernel& row(const Context& ctx) const { return choose(ctx, &Backend::delta_rule); }
};

}  // namespace

void delta_rule_forward(const Context& ctx, const DeltaRuleForward& args) {
  const Frame frame(args.tokens, args.q, "q", args.v, "v");
  frame.expect_key_like(args.k, "k");
  frame.expect_sums(args.out_acc, "out_acc", frame.value_dim);
  frame.expect_state_if_present(args.state_in, "state_in");
  frame.expect_state_if_present(args.state_out, "state_out");
  frame.row(ctx).forward(ctx, args);
}

void delta_rule_backward(const Context& ctx, const DeltaRuleBackward& args) {
  const Frame frame(args.tokens, args.q, "q", args.v, "v");
  frame.expect_key_like(args.k, "k");
  frame.expect_value_like(args.dout, "dout");
  frame.expect_sums(args.dq_acc, "dq_acc", frame.head_dim);
  frame.expect_sums(args.dk_acc, "dk_acc", frame.head_dim);
  frame.expect_sums(args.dv_acc, "dv_acc", frame.value_dim);
  frame.expect_accumulators(args.dlog_gate, "dlog_gate", {frame.rows, frame.heads});
  frame.expect_accumulators(args.dbeta, "dbeta", {frame.rows, frame.heads});
  frame.expect_state_if_present(args.state_in, "state_in");
  frame.expect_state_if_present(args.dstate_out, "dstate_out");
  frame.expect_state_if_present(args.dstate_in, "dstate_in");
  frame.row(ctx).backward(ctx, args);
}

void delta_rule_maps(const Context& ctx, const DeltaRuleMaps& args) {
  const Frame frame(args.tokens, args.k, "k", args.v, "v");
  frame.expect_state(args.sums, "sums");
  frame.expect_transition(args.transition);
  frame.row(ctx).maps(ctx, args);
}

void delta_rule_backward_maps(const Context& ctx, const DeltaRuleBackwardMaps& args) {
  const Frame frame(args.tokens, args.q, "q", args.dout, "dout");
  frame.expect_key_like(args.k, "k");
  frame.expect_state(args.sums, "sums");
  if (args.transition.rank() > 0) frame.expect_transition(args.transition);
  frame.row(ctx).backward_maps(ctx, args);
}

}  // namespace longhaul::kernels
