#include "kernels/linear_attention.h"

#include <cmath>
#include <utility>

#include "kernels/linear_frame.h"
#include "kernels/pointwise.h"

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

  void expect_maps(const LinearAttentionKernel& row, ConstTensorView sums,
                   ConstTensorView log_decay) const {
    expect_state(row, sums, "sums");
    expect_accumulators(log_decay, "log_decay", {runs, heads});
  }
  const LinearAttentionKernel& row(const Context& ctx) const {
    return choose(ctx, &Backend::linear_attention);
  }

  // Dense, or a slice of heads where the row takes them.
  void expect_sums(const LinearAttentionKernel& row, ConstTensorView view, std::string_view name,
                   int64_t dim) const {
    expect_slice(row, view, name, {rows, heads, dim});
  }
  void expect_state(const LinearAttentionKernel& row, ConstTensorView view,
                    std::string_view name) const {
    expect_slice(row, view, name, {runs, heads, head_dim, value_dim});
  }
  void expect_state_if_present(const LinearAttentionKernel& row, ConstTensorView view,
                               std::string_view name) const {
    if (view.rank() > 0) expect_state(row, view, name);
  }

 private:
  void expect_slice(const LinearAttentionKernel& row, ConstTensorView view, std::string_view name,
                    const Shape& shape) const {
    if (!row.head_slices) return expect_accumulators(view, name, shape);
    expect_rows(view, absl::StrCat("linear attention: ", std::string(name)), accumulator(dtype),
                shape);
  }
};

}  // namespace

bool linear_attention_takes_head_slices(const Context& ctx, DType dtype, int64_t head_dim,
                                        int64_t value_dim) {
  for (const LinearAttentionKernel& row : backend(ctx.device()).linear_attention) {
    if (row.dtype == dtype && row.available() && row.supports(head_dim, value_dim)) {
      return row.head_slices;
    }
  }
  return false;
}

void linear_attention_forward(const Context& ctx, const LinearAttentionForward& args) {
  const Frame frame(args.tokens, args.q, "q", args.v, "v");
  const LinearAttentionKernel& row = frame.row(ctx);
  frame.expect_key_like(args.k, "k");
  frame.expect_sums(row, args.out_acc, "out_acc", frame.value_dim);
  frame.expect_state_if_present(row, args.state_in, "state_in");
  frame.expect_state_if_present(row, args.state_out, "state_out");
  row.forward(ctx, args);
}

void linear_attention_backward(const Context& ctx, const LinearAttentionBackward& args) {
  const Frame frame(args.tokens, args.q, "q", args.v, "v");
  const LinearAttentionKernel& row = frame.row(ctx);
  frame.expect_key_like(args.k, "k");
  frame.expect_value_like(args.dout, "dout");
  frame.expect_sums(row, args.dq_acc, "dq_acc", frame.head_dim);
  frame.expect_sums(row, args.dk_acc, "dk_acc", frame.head_dim);
  frame.expect_sums(row, args.dv_acc, "dv_acc", frame.value_dim);
  frame.expect_state_if_present(row, args.state_in, "state_in");
  frame.expect_state_if_present(row, args.dstate_out, "dstate_out");
  frame.expect_state_if_present(row, args.dstate_in, "dstate_in");
  if (!args.overwrite || row.overwrites) return row.backward(ctx, args);
  LinearAttentionBackward added = args;
  added.overwrite = false;
  for (const TensorView& result : {args.dq_acc, args.dk_acc, args.dv_acc}) fill_zero(ctx, result);
  row.backward(ctx, added);
}

void linear_attention_maps(const Context& ctx, const LinearAttentionMaps& args) {
  const Frame frame(args.tokens, args.k, "k", args.v, "v");
  const LinearAttentionKernel& row = frame.row(ctx);
  frame.expect_maps(row, args.sums, args.log_decay);
  row.maps(ctx, args);
}

void linear_attention_backward_maps(const Context& ctx, const LinearAttentionBackwardMaps& args) {
  const Frame frame(args.tokens, args.q, "q", args.dout, "dout");
  const LinearAttentionKernel& row = frame.row(ctx);
  frame.expect_maps(row, args.sums, args.log_decay);
  row.backward_maps(ctx, args);
}

void linear_attention_add_out(const Context& ctx, const LinearAttentionAddOut& args) {
  const Frame frame(args.tokens, args.q, "q", args.out_acc.rank() == 3 ? args.out_acc.dim(2) : 0);
  const LinearAttentionKernel& row = frame.row(ctx);
  frame.expect_state(row, args.state_in, "state_in");
  frame.expect_sums(row, args.out_acc, "out_acc", frame.value_dim);
  row.add_out(ctx, args);
}

void linear_attention_add_dq(const Context& ctx, const LinearAttentionAddDq& args) {
  // Here the given operand runs along Dv and the result along D.
  Frame frame(args.tokens, args.dout, "dout", args.dq_acc.rank() == 3 ? args.dq_acc.dim(2) : 0);
  std::swap(frame.head_dim, frame.value_dim);
  const LinearAttentionKernel& row = frame.row(ctx);
  frame.expect_state(row, args.state_in, "state_in");
  frame.expect_sums(row, args.dq_acc, "dq_acc", frame.head_dim);
  row.add_dq(ctx, args);
}

void linear_attention_add_dk_dv(const Context& ctx, const LinearAttentionAddDkDv& args) {
  const Frame frame(args.tokens, args.k, "k", args.v, "v");
  const LinearAttentionKernel& row = frame.row(ctx);
  frame.expect_state(row, args.dstate_out, "dstate_out");
  frame.expect_sums(row, args.dk_acc, "dk_acc", frame.head_dim);
  frame.expect_sums(row, args.dv_acc, "dv_acc", frame.value_dim);
  row.add_dk_dv(ctx, args);
}

}  // namespace longhaul::kernels
