// Attention of each token to those before it and itself: one scan, in the direction of the pass.
#include "kernels/pointwise.h"
#include "kernels/state_maps.h"
#include "parallel/scan/kinds.h"
#include "parallel/scan/pass.h"

namespace longhaul::parallel {

namespace {

bool present(const ConstTensorView& view) { return view.rank() > 0; }

// This rank's runs whose maps someone reads: all but one, at an end of the sample, if nothing is
// beyond it.
struct Read {
  int64_t begin, count;

  RunRows of(const RunRows& rows) const {
    return {rows.runs.subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
            rows.document_begins};
  }
  TensorView of(const TensorView& maps) const { return maps.rows(begin, count); }
  // What nobody reads travels as zeros.
  void clear_others(const Context& ctx, const TensorView& maps) const {
    if (count == maps.dim(0)) return;
    kernels::fill_zero(ctx, maps.rows(begin == 0 ? count : 0, maps.dim(0) - count));
  }
};

}  // namespace

void LinearAttention::begin_causal(const Context& ctx, Pass& pass) {
  if (by_heads(ctx)) return begin_by_heads(ctx, pass);
  const LinearAttentionForwardArgs& args = pass.args;
  Scan& scan = pass.scan;
  allocate_maps(pass, scan);
  const OwnRuns& runs = sample_->own;
  // One map alone is composed with nothing.
  if (own() > 0 && (runs.maps > 1 || present(args.final_state))) {
    const bool last_is_read =
        runs.last != own() - 1 || present(args.final_state) || ctx.measuring();
    const Read read{0, last_is_read ? own() : own() - 1};
    parts_.maps(ctx, read.of(run_rows()), args, read.of(scan.sums), read.of(scan.decay));
    read.clear_others(ctx, scan.sums);
    read.clear_others(ctx, scan.decay);
    if (runs.first >= 0 && present(args.initial_state)) {
      const Shape one{1, options_.heads, options_.head_dim * options_.value_dim};
      kernels::state_maps_compose(ctx, {.kind = parts_.decay,
                                        .head_dim = options_.head_dim,
                                        .earlier_sums = args.initial_state.reshape(one),
                                        .earlier_decay = {},
                                        .sums = flat(scan.sums).rows(runs.first, 1),
                                        .decay = scan.decay.rows(runs.first, 1)});
    }
  }
  start(ctx, pass, scan, Direction::kForward, args.states);
}

void LinearAttention::finish_causal(const Context& ctx, Pass& pass) {
  if (by_heads(ctx)) return finish_by_heads(ctx, pass);
  const LinearAttentionForwardArgs& args = pass.args;
  const OwnRuns& runs = sample_->own;
  if (own() > 0 && parts_.add_states != nullptr) {
    parts_.forward(polling(ctx, pass), run_rows(), args, {});
  }
  pass.scan.execution->finish(ctx);
  const bool initial = runs.first >= 0 && present(args.initial_state);
  if (initial) {
    const TensorView first = args.states.rows(runs.first, 1);
    kernels::copy(ctx, args.initial_state, first.reshape(args.initial_state.shape()));
  }
  if (own() > 0 && parts_.add_states == nullptr) {
    parts_.forward(ctx, run_rows(), args, args.states);
  } else if (own() > 0 && (runs.entered || initial)) {
    parts_.add_states(ctx, run_rows(), args, args.states);
  }
}

// What leaves the last run.
void LinearAttention::share_final_state(const Context& ctx, const Pass& pass) {
  const OwnRuns& runs = sample_->own;
  const TensorView& result = pass.args.final_state;
  if (runs.maps == 0) {  // no tokens
    const bool initial = present(pass.args.initial_state);
    if (initial) kernels::copy(ctx, pass.args.initial_state, result);
    if (!initial) kernels::fill_zero(ctx, result);
    return;
  }
  if (runs.last >= 0) {
    const auto copy = [&](const TensorView& sums, const TensorView& to) {
      kernels::copy(ctx, sums.rows(runs.last, 1).reshape(to.shape()), to);
    };
    for (const HeadGroup& group : pass.groups) {
      copy(group.scan.sums, result.rows(group.heads.begin, group.heads.length));
    }
    if (pass.groups.empty()) copy(pass.scan.sums, result);
  }
  if (ctx.measuring()) return;
  Stream stream = ctx.stream;
  group_.broadcast(stream, result, runs.last_owner, "linear attention final state").wait(stream);
}

void LinearAttention::backward_causal(const Context& ctx, Pass& pass,
                                      const LinearAttentionBackwardArgs& args) {
  if (by_heads(ctx)) return backward_by_heads(ctx, pass, args);
  Scan& scan = pass.scan;
  allocate_maps(pass, scan);
  const TensorView dstates = pass.arena.allocate(accumulator(options_.dtype), state_shape());

  const OwnRuns& runs = sample_->own;
  if (own() > 0 && (runs.maps > 1 || parts_.complete != nullptr)) {
    const bool first_is_read = runs.first != 0 || parts_.complete != nullptr || ctx.measuring();
    const int64_t begin = first_is_read ? 0 : 1;
    const Read read{begin, own() - begin};
    parts_.backward_maps(ctx, read.of(run_rows()), args, read.of(scan.sums), read.of(scan.decay));
    read.clear_others(ctx, scan.sums);
    read.clear_others(ctx, scan.decay);
  }
  start(ctx, pass, scan, Direction::kBackward, dstates);
  for (const TensorView& gradient : {args.dq_acc, args.dk_acc, args.dv_acc}) {
    kernels::fill_zero(ctx, gradient);
  }
  if (own() > 0 && parts_.add_dstates != nullptr) {
    parts_.backward(polling(ctx, pass), run_rows(), args, args.states, {});
  }
  scan.execution->finish(ctx);
  if (own() > 0 && parts_.add_dstates == nullptr) {
    parts_.backward(ctx, run_rows(), args, args.states, dstates);
  } else if (own() > 0 && runs.left) {
    parts_.add_dstates(ctx, run_rows(), args, dstates);
  }
  if (own() > 0 && parts_.complete != nullptr) {
    parts_.complete(ctx, run_rows(), args, args.states, scan.sums);
  }
}

}  // namespace longhaul::parallel
