// Attention over all tokens of a document, a^|i-j| between tokens i and j: attention over the
// tokens before, plus attention over those after, minus what each token has of itself, which both
// have.
//
// To look back from later tokens is to look ahead from earlier ones: attention over the tokens
// after is causal attention's gradient with the roles of q and k, and of v and dout, exchanged.
// Hence the same kernels and the same two plans do both.
//
// Where nothing decays and a sample is one document, every token sees all alike: q_i sum(k_j
// v_j^T), one sum over all ranks in each pass, and no pairs of tokens.
#include <algorithm>

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

bool LinearAttention::sums_suffice(std::span<const double> slopes) const {
  return documents_ && documents_->count() == 1 &&
         std::ranges::all_of(slopes, [](double slope) { return slope == 0; });
}

kernels::LinearRun LinearAttention::all_rows() const {
  const kernels::LinearRun& last = sample_->own.rows.back();
  return {.begin = 0, .length = last.begin + last.length};
}

// Of x y^T over all tokens of the sample.
void LinearAttention::start_sum(const Context& ctx, Pass& pass, Direction direction,
                                const ConstTensorView& x, const ConstTensorView& y,
                                std::span<const double> slopes) {
  const DType acc = accumulator(options_.dtype);
  pass.total = pass.arena.allocate(acc, {1, options_.heads, options_.head_dim, options_.value_dim});
  if (own() > 0) {
    const kernels::LinearRun rows = all_rows();
    const TensorView decay = pass.arena.allocate(acc, {1, options_.heads, 1});
    maps(ctx, {.runs = {&rows, 1}, .document_begins = {}, .slopes = slopes}, direction, x, y,
         pass.total, decay);
  } else {
    kernels::fill_zero(ctx, pass.total);
  }
  Stream stream = ctx.stream;
  pass.summing = group_.all_reduce(
      stream, pass.total, dist::ReduceOp::kSum,
      direction == Direction::kForward ? "linear attention forward" : "linear attention backward");
}

// `states` then begins with the sum.
void LinearAttention::finish_sum(const Context& ctx, Pass& pass) {
  const LinearAttentionForwardArgs& args = pass.args;
  pass.summing->wait(ctx.stream);
  if (own() == 0) return;
  const kernels::LinearRun rows = all_rows();
  kernels::copy(ctx, pass.total, args.states.rows(0, 1));
  kernels::fill_zero(ctx, args.out_acc);
  kernels::linear_attention_add_out(
      ctx, {.tokens = {.runs = {&rows, 1}, .document_begins = {}, .slopes = args.slopes},
            .q = args.q,
            .state_in = pass.total,
            .out_acc = args.out_acc});
}

void LinearAttention::backward_sum(const Context& ctx, Pass& pass,
                                   const LinearAttentionBackwardArgs& args) {
  start_sum(ctx, pass, Direction::kBackward, args.q, args.dout, args.slopes);
  for (const TensorView& gradient : {args.dq_acc, args.dk_acc, args.dv_acc}) {
    kernels::fill_zero(ctx, gradient);
  }
  if (own() == 0) {
    pass.summing->wait(ctx.stream);
    return;
  }
  const kernels::LinearRun rows = all_rows();
  const kernels::LinearTokens tokens{
      .runs = {&rows, 1}, .document_begins = {}, .slopes = args.slopes};
  Context polling = ctx;
  polling.poll = [&pass, outer = ctx.poll] {
    pass.summing->test();
    if (outer) outer();
  };
  kernels::linear_attention_add_dq(polling, {.tokens = tokens,
                                             .dout = args.dout,
                                             .state_in = args.states.rows(0, 1),
                                             .dq_acc = args.dq_acc});
  pass.summing->wait(ctx.stream);
  kernels::linear_attention_add_dk_dv(ctx, {.tokens = tokens,
                                            .k = args.k,
                                            .v = args.v,
                                            .dstate_out = pass.total,
                                            .dk_acc = args.dk_acc,
                                            .dv_acc = args.dv_acc});
}

// The two halves of `states`: what enters each run from the left, and from the right.
void LinearAttention::begin_both(const Context& ctx, Pass& pass) {
  const LinearAttentionForwardArgs& args = pass.args;
  LONGHAUL_CHECK(args.initial_state.rank() == 0 && args.final_state.rank() == 0,
                 "states of other samples are for causal attention");
  if (sums_suffice(args.slopes)) {
    start_sum(ctx, pass, Direction::kForward, args.k, args.v, args.slopes);
    return;
  }
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
  if (pass.summing) {
    finish_sum(ctx, pass);
    return;
  }
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
  if (sums_suffice(args.slopes)) {
    backward_sum(ctx, pass, args);
    return;
  }
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
