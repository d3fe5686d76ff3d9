#include "kernels/attention.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

namespace {

const AttentionKernel& choose(const Context& ctx, DType dtype, int64_t head_dim,
                              int64_t value_dim) {
  for (const AttentionKernel& row : backend(ctx.device()).attention) {
    if (row.dtype == dtype && row.available() && row.supports(head_dim, value_dim)) return row;
  }
  no_kernel(absl::StrCat("attention with head dimensions ", head_dim, " and ", value_dim),
            ctx.device(), dtype);
}

void check_segments(std::span<const Segment> segments, int64_t queries, int64_t keys) {
  for (const Segment& s : segments) {
    LONGHAUL_CHECK(s.q_row >= 0 && s.q_len >= 0 && s.q_row + s.q_len <= queries,
                   absl::StrCat("attention: a segment's queries [", s.q_row, ", +", s.q_len,
                                ") lie outside the ", queries, " rows of q"));
    LONGHAUL_CHECK(s.k_row >= 0 && s.k_len >= 0 && s.k_row + s.k_len <= keys,
                   absl::StrCat("attention: a segment's keys [", s.k_row, ", +", s.k_len,
                                ") lie outside the ", keys, " rows of k"));
  }
}

void check_options(const AttentionOptions& options, int64_t q_heads) {
  LONGHAUL_CHECK(options.soft_cap >= 0 && std::isfinite(options.soft_cap),
                 absl::StrCat("attention: soft_cap is ", options.soft_cap,
                              " and must be finite and not negative; 0 means none"));
  LONGHAUL_CHECK(options.dropout.probability >= 0 && options.dropout.probability < 1,
                 absl::StrCat("attention: the dropout probability is ", options.dropout.probability,
                              " and must be at least 0 and below 1"));
  if (options.biased()) {
    expect_dense(options.bias_slopes, "attention: bias_slopes", DType::kF32, {q_heads});
  }
}

// Some heads of a dense tensor: kernels go from head to head and from row to row.
void expect_heads(const TensorView& view, std::string_view what, DType dtype, const Shape& shape) {
  expect_rows(view, what, dtype, shape);
  LONGHAUL_CHECK(view.dim(0) <= 1 || view.stride(0) % view.dim(2) == 0,
                 absl::StrCat(std::string(what), ": rows begin ", view.stride(0),
                              " elements apart, which are no whole heads of ", view.dim(2)));
}

// What forward and backward share.
template <class Args>
void check_operands(const Args& args) {
  expect_float(args.q, "attention: q", 3);
  expect_float(args.k, "attention: k", 3);
  expect_float(args.v, "attention: v", 3);
  const DType dtype = args.q.dtype();
  const int64_t keys = args.k.dim(0), kv_heads = args.k.dim(1);
  expect(args.k, "attention: k", dtype, {keys, kv_heads, args.q.dim(2)});
  expect(args.v, "attention: v", dtype, {keys, kv_heads, args.v.dim(2)});
  LONGHAUL_CHECK(args.q.dim(2) > 0 && args.v.dim(2) > 0, "attention: empty heads");
  LONGHAUL_CHECK(args.heads.group > 0, "attention: heads.group");
  if (const int64_t q_heads = args.q.dim(1); q_heads > 0) {
    const int64_t first = args.heads.kv_head(0), last = args.heads.kv_head(q_heads - 1);
    LONGHAUL_CHECK(first >= 0 && last < kv_heads,
                   absl::StrCat("attention: query heads use kv heads ", first, " to ", last, " of ",
                                kv_heads));
  }
  check_segments(args.segments, args.q.dim(0), keys);
  check_options(args.options, args.q.dim(1));
}

}  // namespace

void attention_init(const Context& ctx, TensorView out_acc, TensorView lse) {
  LONGHAUL_CHECK(out_acc.rank() == 3, "attention_init: out_acc");
  const DType acc = accumulator(out_acc.dtype());
  expect_dense(out_acc, "attention_init: out_acc", acc, out_acc.shape());
  expect_dense(lse, "attention_init: lse", acc, {out_acc.dim(1), out_acc.dim(0)});
  choose(ctx, acc, out_acc.dim(2), out_acc.dim(2)).init(ctx, out_acc, lse);
}

void attention_forward(const Context& ctx, const AttentionForward& args) {
  check_operands(args);
  const DType dtype = args.q.dtype(), acc = accumulator(dtype);
  const int64_t queries = args.q.dim(0), q_heads = args.q.dim(1), value_dim = args.v.dim(2);
  expect_heads(args.out_acc, "attention: out_acc", acc, {queries, q_heads, value_dim});
  expect_dense(args.lse, "attention: lse", acc, {q_heads, queries});
  choose(ctx, dtype, args.q.dim(2), value_dim).forward(ctx, args);
}

void attention_delta(const Context& ctx, ConstTensorView out, ConstTensorView dout,
                     TensorView delta) {
  expect_float(dout, "attention_delta: dout", 3);
  expect_float(out, "attention_delta: out", 3);
  const DType dtype = dout.dtype(), acc = accumulator(dtype);
  expect(out, "attention_delta: out", out.dtype() == dtype ? dtype : acc, dout.shape());
  expect_dense(delta, "attention_delta: delta", acc, {dout.dim(1), dout.dim(0)});
  choose(ctx, dtype, dout.dim(2), dout.dim(2)).delta(ctx, out, dout, delta);
}

void attention_backward(const Context& ctx, const AttentionBackward& args) {
  check_operands(args);
  const DType dtype = args.q.dtype(), acc = accumulator(dtype);
  const int64_t queries = args.q.dim(0), q_heads = args.q.dim(1), value_dim = args.v.dim(2);
  expect_float(args.dout, "attention: dout", 3);
  expect(args.dout, "attention: dout", dtype, {queries, q_heads, value_dim});
  expect_dense(args.lse, "attention: lse", acc, {q_heads, queries});
  expect_dense(args.delta, "attention: delta", acc, {q_heads, queries});
  expect_heads(args.dq_acc, "attention: dq_acc", acc, args.q.shape());
  expect_dense(args.dk_acc, "attention: dk_acc", acc, args.k.shape());
  expect_dense(args.dv_acc, "attention: dv_acc", acc, args.v.shape());
  choose(ctx, dtype, args.q.dim(2), value_dim).backward(ctx, args);
}

void attention_merge(const Context& ctx, ConstTensorView part, ConstTensorView part_lse,
                     TensorView out_acc, TensorView lse) {
  LONGHAUL_CHECK(out_acc.rank() == 3, "attention_merge: out_acc");
  const DType acc = accumulator(out_acc.dtype());
  expect_dense(out_acc, "attention_merge: out_acc", acc, out_acc.shape());
  expect_dense(part, "attention_merge: part", acc, out_acc.shape());
  expect_dense(lse, "attention_merge: lse", acc, {out_acc.dim(1), out_acc.dim(0)});
  expect_dense(part_lse, "attention_merge: part_lse", acc, lse.shape());
  choose(ctx, acc, out_acc.dim(2), out_acc.dim(2)).merge(ctx, part, part_lse, out_acc, lse);
}

}  // namespace longhaul::kernels
