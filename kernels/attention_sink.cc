#include "kernels/attention_sink.h"

#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

void attention_sink_forward(const Context& ctx, const AttentionSinkForward& args) {
  expect_float(args.sink, "attention_sink: sink", 1);
  expect_float(args.out_acc, "attention_sink: out_acc", 3);
  const DType dtype = args.sink.dtype(), acc = accumulator(dtype);
  const int64_t heads = args.out_acc.dim(1);
  expect_dense(args.sink, "attention_sink: sink", dtype, {heads});
  expect_dense(args.out_acc, "attention_sink: out_acc", acc, args.out_acc.shape());
  expect_dense(args.lse, "attention_sink: lse", acc, {heads, args.out_acc.dim(0)});
  select(backend(ctx.device()).attention_sink, "attention_sink", ctx.device(), dtype)
      .forward(ctx, args);
}

void attention_sink_backward(const Context& ctx, const AttentionSinkBackward& args) {
  expect_float(args.sink, "attention_sink: sink", 1);
  expect_float(args.lse, "attention_sink: lse", 2);
  const DType dtype = args.sink.dtype(), acc = accumulator(dtype);
  expect_dense(args.sink, "attention_sink: sink", dtype, {args.lse.dim(0)});
  expect_dense(args.lse, "attention_sink: lse", acc, args.lse.shape());
  expect_dense(args.delta, "attention_sink: delta", acc, args.lse.shape());
  expect_dense(args.dsink, "attention_sink: dsink", acc, args.sink.shape());
  select(backend(ctx.device()).attention_sink, "attention_sink", ctx.device(), dtype)
      .backward(ctx, args);
}

}  // namespace longhaul::kernels
