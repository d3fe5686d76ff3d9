// Attention over all tokens of a document, a^|i-j| between tokens i and j: attention over the
// tokens before, plus attention over those after, minus what each token has of itself, which both
// have.
//
// To look back from later tokens is to look ahead from earlier ones: attention over the tokens
// after is causal attention's gradient with the roles of q and k, and of v and dout, exchanged.
// Hence the same kernels and the same two plans do both.
#include "kernels/linear_attention_diagonal.h"
#include "kernels/pointwise.h"
#include "parallel/scan/kinds.h"
#include "parallel/scan/pass.h"

namespace longhaul::parallel {

namespace {

kernels::LinearTokens tokens(const RunRows& rows, std::span<const double> slopes) {
  return {.runs = rows.runs, .document_begins = rows.document_begins, .slopes = slopes};
}

TensorView per_head(const TensorView& decay) { return decay.reshape({decay.dim(0), decay.dim(1)}); }

// Sums of x y^T over a run, towards its end or its begin.
void maps(const Context& ctx, const kernels::LinearTokens& tokens, Direction direction,
          const ConstTensorView& x, const ConstTensorView& y, const TensorView& sums,
          const TensorView& decay) {
  if (direction == Direction::kForward) {
    kernels::linear_attention_maps(
        ctx, {.tokens = tokens, .k = x, .v = y, .sums = sums, .log_decay = per_head(decay)});
  } else {
    kernels::linear_attention_backward_maps(
        ctx, {.tokens = tokens, .q = x, .dout = y, .sums = sums, .log_decay = per_head(decay)});
  }
}

}  // namespace

// The two halves of `states`: what enters each run from the left, and from the right.
void LinearAttention::begin_both(const Context& ctx, Pass& pass) {
  const LinearAttentionForwardArgs& args = pass.args;
  LONGHAUL_CHECK(args.initial_state.rank() == 0 && args.final_state.rank() == 0,
                 "states of other samples are for causal attention");
  const kernels::LinearTokens rows = tokens(run_rows(), args.slopes);
  const bool composed = own() > 0 && sample_->own.maps > 1;
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    Scan& scan = direction == Direction::kForward ? pass.scan : pass.other_scan;
    allocate_maps(pass, scan);
    if (composed) maps(ctx, rows, direction, args.k, args.v, scan.sums, scan.decay);
    const int64_t half = direction == Direction::kForward ? 0 : own();
    start(ctx, pass, scan, direction, args.states.rows(half, own()));
  }
  // The gradients of q and k of what looks ahead.
  for (TensorView& unused : pass.unused) {
    unused = pass.arena.allocate(accumulator(options_.dtype), args.q.shape());
  }
}

void LinearAttention::finish_both(const Context& ctx, Pass& pass) {
  const LinearAttentionForwardArgs& args = pass.args;
  const kernels::LinearTokens rows = tokens(run_rows(), args.slopes);
  if (own() > 0) {
    const Context polling = this->polling(ctx, pass);
    kernels::linear_attention_forward(
        polling, {.tokens = rows, .q = args.q, .k = args.k, .v = args.v, .out_acc = args.out_acc});
    for (const TensorView& unused : pass.unused) kernels::fill_zero(ctx, unused);
    kernels::linear_attention_backward(polling, {.tokens = rows,
                                                 .q = args.k,
                                                 .k = args.q,
                                                 .v = args.v,
                                                 .dout = args.v,
                                                 .dq_acc = pass.unused[0],
                                                 .dk_acc = pass.unused[1],
                                                 .dv_acc = args.out_acc});
    kernels::linear_attention_subtract_diagonal(
        ctx, {.a = args.q, .b = args.k, .c = args.v, .y = args.out_acc});
  }
  pass.scan.execution->finish(ctx);
  pass.other_scan.execution->finish(ctx);
  if (own() > 0 && sample_->own.entered) {
    kernels::linear_attention_add_out(ctx, {.tokens = rows,
                                            .q = args.q,
                                            .state_in = args.states.rows(0, own()),
                                            .out_acc = args.out_acc});
  }
  if (own() > 0 && sample_->own.left) {
    kernels::linear_attention_add_dk_dv(ctx, {.tokens = rows,
                                              .k = args.q,
                                              .v = args.v,
                                              .dstate_out = args.states.rows(own(), own()),
                                              .dk_acc = pass.unused[1],
                                              .dv_acc = args.out_acc});
  }
}

void LinearAttention::backward_both(const Context& ctx, Pass& pass,
                                    const LinearAttentionBackwardArgs& args) {
  const kernels::LinearTokens rows = tokens(run_rows(), args.slopes);
  const DType acc = accumulator(options_.dtype);
  // What enters each run of q and dout: from the left, and from the right.
  TensorView entering[2];
  const bool composed = own() > 0 && sample_->own.maps > 1;
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    const bool forward = direction == Direction::kForward;
    Scan& scan = forward ? pass.scan : pass.other_scan;
    allocate_maps(pass, scan);
    entering[forward ? 0 : 1] = pass.arena.allocate(acc, state_shape());
    if (composed) maps(ctx, rows, direction, args.q, args.dout, scan.sums, scan.decay);
    start(ctx, pass, scan, direction, entering[forward ? 0 : 1]);
  }
  const TensorView unused = pass.arena.allocate(acc, args.v.shape());
  for (const TensorView& gradient : {args.dq_acc, args.dk_acc, unused}) {
    kernels::fill_zero(ctx, gradient);
  }
  const Context polling = this->polling(ctx, pass);
  if (own() > 0) {
    // As the query of later tokens, with what they have of earlier ones.
    kernels::linear_attention_forward(
        polling,
        {.tokens = rows, .q = args.k, .k = args.q, .v = args.dout, .out_acc = args.dv_acc});
    kernels::linear_attention_backward(polling, {.tokens = rows,
                                                 .q = args.k,
                                                 .k = args.q,
                                                 .v = args.dout,
                                                 .dout = args.v,
                                                 .dstate_out = args.states.rows(own(), own()),
                                                 .dq_acc = args.dk_acc,
                                                 .dk_acc = args.dq_acc,
                                                 .dv_acc = unused});
    kernels::linear_attention_backward(polling, {.tokens = rows,
                                                 .q = args.q,
                                                 .k = args.k,
                                                 .v = args.v,
                                                 .dout = args.dout,
                                                 .state_in = args.states.rows(0, own()),
                                                 .dq_acc = args.dq_acc,
                                                 .dk_acc = args.dk_acc,
                                                 .dv_acc = args.dv_acc});
    kernels::linear_attention_subtract_diagonal(
        ctx, {.a = args.dout, .b = args.v, .c = args.k, .y = args.dq_acc});
    kernels::linear_attention_subtract_diagonal(
        ctx, {.a = args.dout, .b = args.v, .c = args.q, .y = args.dk_acc});
    kernels::linear_attention_subtract_diagonal(
        ctx, {.a = args.q, .b = args.k, .c = args.dout, .y = args.dv_acc});
  }
  pass.scan.execution->finish(ctx);
  pass.other_scan.execution->finish(ctx);
  if (own() > 0 && sample_->own.entered) {
    kernels::linear_attention_add_out(
        ctx, {.tokens = rows, .q = args.k, .state_in = entering[0], .out_acc = args.dv_acc});
    kernels::linear_attention_add_dq(
        ctx, {.tokens = rows, .dout = args.v, .state_in = entering[0], .dq_acc = args.dk_acc});
  }
  if (own() > 0 && sample_->own.left) {
    kernels::linear_attention_add_dk_dv(ctx, {.tokens = rows,
                                              .k = args.k,
                                              .v = args.v,
                                              .dstate_out = entering[1],
                                              .dk_acc = args.dk_acc,
                                              .dv_acc = args.dv_acc});
  }
}

}  // namespace longhaul::parallel
