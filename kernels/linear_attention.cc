#include "kernels/linear_attention.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

namespace {

bool present(const ConstTensorView& view) { return view.rank() > 0; }

const LinearAttentionKernel& choose(const Context& ctx, DType dtype, int64_t head_dim,
                                    int64_t value_dim) {
  for (const LinearAttentionKernel& row : backend(ctx.device()).linear_attention) {
    if (row.dtype == dtype && row.available() && row.supports(head_dim, value_dim)) return row;
  }
  no_kernel(absl::StrCat("linear attention with head dimensions ", head_dim, " and ", value_dim),
            ctx.device(), dtype);
}

void check_tokens(const LinearTokens& tokens, int64_t rows, int64_t heads) {
  int64_t end = 0;
  for (const LinearRun& run : tokens.runs) {
    LONGHAUL_CHECK(run.begin >= end && run.length >= 0 && run.begin + run.length <= rows,
                   absl::StrCat("linear attention: run [", run.begin, ", +", run.length,
                                ") overlaps another or lies outside the ", rows, " rows"));
    end = run.begin + run.length;
  }
  int64_t last = -1;
  for (const int64_t begin : tokens.document_begins) {
    LONGHAUL_CHECK(begin > last && begin < rows,
                   absl::StrCat("linear attention: a document begins at row ", begin, " after ",
                                last, " of ", rows, " rows"));
    last = begin;
  }
  LONGHAUL_CHECK(
      static_cast<int64_t>(tokens.slopes.size()) == heads,
      absl::StrCat("linear attention: ", tokens.slopes.size(), " slopes for ", heads, " heads"));
  for (const double slope : tokens.slopes) {
    LONGHAUL_CHECK(slope >= 0 && std::isfinite(slope),
                   absl::StrCat("linear attention: a slope of ", slope));
  }
}

// What all operations are about: tensors [T, H, D] and [T, H, Dv] of one dtype.
struct Frame {
  Frame(const LinearTokens& tokens, ConstTensorView key_like, std::string_view key_name,
        ConstTensorView value_like, std::string_view value_name)
      : Frame(tokens, key_like, key_name, value_like.rank() == 3 ? value_like.dim(2) : 0) {
    expect_value_like(value_like, value_name);
  }

  Frame(const LinearTokens& tokens, ConstTensorView key_like, std::string_view key_name,
        int64_t value_dim_)
      : runs(static_cast<int64_t>(tokens.runs.size())) {
    expect_float(key_like, label(key_name), 3);
    dtype = key_like.dtype();
    rows = key_like.dim(0);
    heads = key_like.dim(1);
    head_dim = key_like.dim(2);
    value_dim = value_dim_;
    LONGHAUL_CHECK(head_dim > 0 && value_dim > 0, "linear attention: empty heads");
    check_tokens(tokens, rows, heads);
  }

  static std::string label(std::string_view name) {
    return absl::StrCat("linear attention: ", std::string(name));
  }
  void expect_key_like(ConstTensorView view, std::string_view name) const {
    expect_float(view, label(name), 3);
    expect(view, label(name), dtype, {rows, heads, head_dim});
  }
  void expect_value_like(ConstTensorView view, std::string_view name) const {
    expect_float(view, label(name), 3);
    expect(view, label(name), dtype, {rows, heads, value_dim});
  }
  void expect_sums(ConstTensorView view, std::string_view name, int64_t dim) const {
    expect_dense(view, label(name), accumulator(dtype), {rows, heads, dim});
  }
  void expect_state(ConstTensorView view, std::string_view name) const {
    expect_dense(view, label(name), accumulator(dtype), {runs, heads, head_dim, value_dim});
  }
  void expect_state_if_present(ConstTensorView view, std::string_view name) const {
    if (present(view)) expect_state(view, name);
  }
  void expect_maps(ConstTensorView sums, ConstTensorView log_decay) const {
    expect_state(sums, "sums");
    expect_dense(log_decay, label("log_decay"), accumulator(dtype), {runs, heads});
  }
  const LinearAttentionKernel& row(const Context& ctx) const {
    return choose(ctx, dtype, head_dim, value_dim);
  }

  DType dtype = DType::kF32;
  int64_t rows = 0, heads = 0, head_dim = 0, value_dim = 0, runs = 0;
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
