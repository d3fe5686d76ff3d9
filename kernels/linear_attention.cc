#include "kernels/linear_attention.h"

#include <cmath>
#include <utility>

#include "kernels/linear_frame.h"

namespace longhaul::kernels {

namespace {

void check_slopes(std::span<const double> slopes, int64_t heads) {
  LONGHAUL_CHECK(
      static_cast<int64_t>(slopes.size()) == heads,
      absl::StrCat("linear attention: ", slopes.size(), " slopes for ", heads, " heads"));
  for (const double slope : slopes) {
    LONGHAUL_CHECK(slope >= 0 && std::isfinite(slope),
                   absl::StrCat("linear attention: a slope of ", slope));
  }
}

struct Frame : LinearFrame {
  template <class... Operands>
  explicit Frame(const LinearTokens& tokens, Operands... operands)
      : LinearFrame("linear attention", operands...) {
    expect_tokens(tokens.runs, tokens.document_begins);
    check_slopes(tokens.slopes, heads);
  }

  void expect_maps(ConstTensorView sums, ConstTensorView log_decay) const {
    expect_state(sums, "sums");
    expect_accumulators(log_decay, "log_decay", {runs, heads});
  }
  const LinearAttentionKernel& row(const Context& ctx) const {
    return choose(ctx, &Backend::linear_attention);
  }
};

}  // namespace

void linear_attention_forward(const Context& ctx, const LinearAttentionForward& args) {
  const Frame frame(args.tokens, args.q, "q", args.v, "v");
  frame.expect_key_like(args.k, "k");
  frame.expect_sums(args.out_acc, "out_acc", frame.value_dim);
  frame.expect_state_if_present(args.state_in, "state_in");
  frame.expect_state_if_present(args.state_out, "state_out");
  frame.row(ctx).forward(ctx, args);
}

void linear_attention_backward(const Context& ctx, const LinearAttentionBackward& args) {
  const Frame frame(args.tokens, args.q, "q", args.v, "v");
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

void linear_attention_maps(const Context& ctx, const LinearAttentionMaps& args) {
  const Frame frame(args.tokens, args.k, "k", args.v, "v");
  frame.expect_maps(args.sums, args.log_decay);
  frame.row(ctx).maps(ctx, args);
}

void linear_attention_backward_maps(const Context& ctx, const LinearAttentionBackwardMaps& args) {
  const Frame frame(args.tokens, args.q, "q", args.dout, "dout");
  frame.expect_maps(args.sums, args.log_decay);
  frame.row(ctx).backward_maps(ctx, args);
}

void linear_attention_add_out(const Context& ctx, const LinearAttentionAddOut& args) {
  const Frame frame(args.tokens, args.q, "q", args.out_acc.rank() == 3 ? args.out_acc.dim(2) : 0);
  frame.expect_state(args.state_in, "state_in");
  frame.expect_sums(args.out_acc, "out_acc", frame.value_dim);
  frame.row(ctx).add_out(ctx, args);
}

void linear_attention_add_dq(const Context& ctx, const LinearAttentionAddDq& args) {
  // Here the given operand runs along Dv and the result along D.
  Frame frame(args.tokens, args.dout, "dout", args.dq_acc.rank() == 3 ? args.dq_acc.dim(2) : 0);
  std::swap(frame.head_dim, frame.value_dim);
  frame.expect_state(args.state_in, "state_in");
  frame.expect_sums(args.dq_acc, "dq_acc", frame.head_dim);
  frame.row(ctx).add_dq(ctx, args);
}

void linear_attention_add_dk_dv(const Context& ctx, const LinearAttentionAddDkDv& args) {
  const Frame frame(args.tokens, args.k, "k", args.v, "v");
  frame.expect_state(args.dstate_out, "dstate_out");
  frame.expect_sums(args.dk_acc, "dk_acc", frame.head_dim);
  frame.expect_sums(args.dv_acc, "dv_acc", frame.value_dim);
  frame.row(ctx).add_dk_dv(ctx, args);
}

}  // namespace longhaul::kernels
