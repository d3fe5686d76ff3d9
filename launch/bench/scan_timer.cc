#include "launch/bench/scan_timer.h"

#include <cmath>

#include "launch/bench/kernel_bench.h"

namespace longhaul::launch {

ScanOperands::ScanOperands(const Context& ctx, const parallel::TokenLayout& layout, int rank,
                           DType dtype, int64_t heads, int64_t dim) {
  const int64_t rows = layout.rows(rank);
  int64_t begin = 0;
  for (const parallel::Run& run : layout.runs(rank)) {
    runs_.push_back({.begin = begin, .length = run.length});
    begin += run.length;
  }
  for (int64_t h = 0; h < heads; ++h) {
    slopes_.push_back(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)));
  }
  const Shape shape{rows, heads, dim};
  const auto seed = [&](int index) { return static_cast<uint64_t>(4 * rank + index); };
  q_ = random_tensor(dtype, shape, seed(0), ctx.device());
  k_ = random_tensor(dtype, shape, seed(1), ctx.device());
  v_ = random_tensor(dtype, shape, seed(2), ctx.device());
  dout_ = random_tensor(dtype, shape, seed(3), ctx.device());
  for (Tensor* result : {&out_, &dq_, &dk_, &dv_}) {
    *result = Tensor(accumulator(dtype), shape, ctx.device());
  }
}

ScanTimer::ScanTimer(dist::Group& group, const Context& ctx, const parallel::TokenLayout& layout,
                     const parallel::LinearAttentionOptions& options, ScanOperands& operands)
    : group_(group),
      ctx_(ctx),
      operands_(operands),
      attention_(group, layout, options),
      states_(accumulator(options.dtype),
              {attention_.runs(), options.heads, options.head_dim, options.value_dim},
              ctx.device()),
      scratch_(Arena::measure("workspace", ctx.device())),
      communication_(Arena::measure("communication", ctx.device())) {
  attention_.prepare(parallel::Documents::whole(layout.tokens()), layout);
  ctx_.scratch = &scratch_;
  run(ctx_, communication_, SequencePass::kBoth);
  scratch_ = Arena("workspace", scratch_.peak(), ctx.device());
  communication_ = Arena("communication", communication_.peak(), ctx.device());
  time(SequencePass::kBoth);
}

void ScanTimer::run(const Context& ctx, Arena& communication, SequencePass pass) {
  ScanOperands& o = operands_;
  if (pass != SequencePass::kBackward) {
    auto pending = attention_.begin(ctx, communication,
                                    {.q = o.q_,
                                     .k = o.k_,
                                     .v = o.v_,
                                     .slopes = o.slopes_,
                                     .out_acc = o.out_,
                                     .states = states_});
    attention_.finish(ctx, std::move(pending));
  }
  if (pass == SequencePass::kForward) return;
  attention_.backward(ctx, communication,
                      {.q = o.q_,
                       .k = o.k_,
                       .v = o.v_,
                       .dout = o.dout_,
                       .slopes = o.slopes_,
                       .states = states_,
                       .dq_acc = o.dq_,
                       .dk_acc = o.dk_,
                       .dv_acc = o.dv_});
}

GroupTiming ScanTimer::time(SequencePass pass) {
  return time_together(group_, ctx_, [&] { run(ctx_, communication_, pass); });
}

LoneScanTimer::LoneScanTimer(dist::Group& group, const Context& ctx, ScanOperands& operands)
    : group_(group),
      ctx_(ctx),
      operands_(operands),
      scratch_(Arena::measure("workspace", ctx.device())) {
  const TensorView& k = operands.k_.view();
  const DType acc = accumulator(k.dtype());
  const Shape shape{static_cast<int64_t>(operands.runs_.size()), k.dim(1), k.dim(2), k.dim(2)};
  states_ = random_tensor(acc, shape, 1, ctx.device());
  dstates_ = random_tensor(acc, shape, 2, ctx.device());
  ctx_.scratch = &scratch_;
  run(ctx_, SequencePass::kBoth);
  scratch_ = Arena("workspace", scratch_.peak(), ctx.device());
  time(SequencePass::kBoth);
}

void LoneScanTimer::run(const Context& ctx, SequencePass pass) {
  ScanOperands& o = operands_;
  const kernels::LinearTokens tokens{.runs = o.runs_, .document_begins = {}, .slopes = o.slopes_};
  if (pass != SequencePass::kBackward) {
    kernels::linear_attention_forward(ctx, {.tokens = tokens,
                                            .q = o.q_,
                                            .k = o.k_,
                                            .v = o.v_,
                                            .state_in = states_,
                                            .out_acc = o.out_});
  }
  if (pass == SequencePass::kForward) return;
  kernels::linear_attention_backward(ctx, {.tokens = tokens,
                                           .q = o.q_,
                                           .k = o.k_,
                                           .v = o.v_,
                                           .dout = o.dout_,
                                           .state_in = states_,
                                           .dstate_out = dstates_,
                                           .dq_acc = o.dq_,
                                           .dk_acc = o.dk_,
                                           .dv_acc = o.dv_,
                                           .overwrite = true});
}

GroupTiming LoneScanTimer::time(SequencePass pass) {
  return time_together(group_, ctx_, [&] { run(ctx_, pass); });
}

}  // namespace longhaul::launch
