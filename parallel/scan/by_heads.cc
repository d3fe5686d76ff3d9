// Causal attention in groups of heads, for kernels that take slices of heads: while the maps of one
// group travel, another group is computed, and each head is computed once, from the states that
// enter. (One pass over all heads would have to begin before these are there, and add to its
// results later what they bring.)
//
// The exchange of a group is over before the next one starts, so that all ranks meet in the same
// order. At the ends of the sample there is less to do: what nothing leaves needs no map, and what
// nothing enters is computed at once, and its map is a by-product. Only the first group's map is
// made alone there, to keep the others' wait short, and that group is computed last.
#include <algorithm>

#include "kernels/linear_attention.h"
#include "kernels/pointwise.h"
#include "kernels/state_maps.h"
#include "parallel/scan/kinds.h"
#include "parallel/scan/pass.h"

namespace longhaul::parallel {

namespace {

// More leave less to compute alone at the ends, but send smaller messages.
constexpr int64_t kMostGroups = 2;

bool present(const ConstTensorView& view) { return view.rank() > 0; }

// Heads of rows [n, H, ...] or of states [R, H, ...].
template <class View>
View heads_of(const View& view, const Span& heads) {
  return view.rank() == 0 ? view : view.slice(1, heads.begin, heads.length);
}
TensorView per_head(const TensorView& decay) { return decay.reshape({decay.dim(0), decay.dim(1)}); }

kernels::LinearTokens tokens(const RunRows& rows, std::span<const double> slopes,
                             const Span& heads) {
  return {.runs = rows.runs,
          .document_begins = rows.document_begins,
          .slopes =
              slopes.subspan(static_cast<size_t>(heads.begin), static_cast<size_t>(heads.length))};
}

}  // namespace

// The heads of each group; empty if there is nothing to gain, or if some heads exchange less than
// others.
std::vector<Span> LinearAttention::head_groups() const {
  std::vector<Span> groups;
  if (options_.kind != LinearKind::kDecay || !options_.causal || group_.size() == 1 ||
      options_.heads == 1 || options_.decay_bound > 0) {
    return groups;
  }
  const int64_t count = std::min(kMostGroups, options_.heads);
  for (int64_t g = 0; g < count; ++g) {
    const int64_t begin = options_.heads * g / count, end = options_.heads * (g + 1) / count;
    groups.push_back({begin, end - begin});
  }
  return groups;
}

bool LinearAttention::by_heads(const Context& ctx) const {
  return !sample_->plans_of_groups.empty() &&
         kernels::linear_attention_takes_head_slices(ctx, options_.dtype, options_.head_dim,
                                                     options_.value_dim);
}

void LinearAttention::allocate_groups(Pass& pass) const {
  const DType acc = accumulator(options_.dtype);
  for (const Span& heads : head_groups()) {
    const int64_t count = heads.length;
    const Shape states{own(), count, options_.head_dim, options_.value_dim};
    HeadGroup& group = pass.groups.emplace_back();
    group.heads = heads;
    group.entering = pass.arena.allocate(acc, states);
    group.scan.sums = pass.arena.allocate(acc, states);
    group.scan.decay = pass.arena.allocate(acc, {own(), count, 1});
  }
}

void LinearAttention::start_group(const Context& ctx, Pass& pass, size_t g, Direction direction) {
  HeadGroup& group = pass.groups[g];
  pass.under_way = &group.scan;
  start(ctx, pass, group.scan, direction, group.entering,
        sample_->plans_of_groups[g][static_cast<size_t>(direction)]);
}

// What goes on while the exchange of group g-1 is under way: make(g). compute(g): from the states
// that enter. at_once: make(g) for g > 0 computes, too.
template <class Make, class Compute>
void LinearAttention::run_groups(const Context& ctx, Pass& pass, Direction direction, bool at_once,
                                 Make&& make, Compute&& compute) {
  const size_t count = pass.groups.size();
  const Context while_under_way = polling(ctx, pass);
  for (size_t g = 0; g < count; ++g) {
    const bool next = g + 1 < count;
    if (next) make(while_under_way, g + 1);
    Scan& scan = pass.groups[g].scan;
    scan.execution->finish(ctx);
    pass.under_way = nullptr;
    scan.execution.reset();
    if (next) start_group(ctx, pass, g + 1, direction);
    if (!at_once || ctx.measuring()) compute(while_under_way, g);
  }
  if (at_once) compute(ctx, 0);
}

void LinearAttention::clear_maps(const Context& ctx, const Scan& scan) {
  kernels::fill_zero(ctx, scan.sums);
  kernels::fill_zero(ctx, scan.decay);
}

// What leaves the runs of group g in forward.
void LinearAttention::make_group(const Context& ctx, Pass& pass, size_t g) {
  const LinearAttentionForwardArgs& args = pass.args;
  const OwnRuns& runs = sample_->own;
  HeadGroup& group = pass.groups[g];
  if (own() == 0) return;
  const bool initial = runs.first >= 0 && present(args.initial_state);
  const bool first = own() == 1 && runs.first == 0 && !initial;
  const bool last = own() == 1 && runs.last == 0 && !present(args.final_state);
  const bool at_once = first && g > 0;
  const kernels::LinearTokens rows = tokens(run_rows(), args.slopes, group.heads);
  if (last || at_once) clear_maps(ctx, group.scan);
  if (at_once || ctx.measuring()) compute_group(ctx, pass, g, {}, group.scan.sums);
  if ((!last && !at_once) || ctx.measuring()) {
    kernels::linear_attention_maps(ctx, {.tokens = rows,
                                         .k = heads_of(args.k, group.heads),
                                         .v = heads_of(args.v, group.heads),
                                         .sums = group.scan.sums,
                                         .log_decay = per_head(group.scan.decay)});
  }
  if (!initial) return;
  const int64_t heads = group.heads.length;
  const Shape one{1, heads, options_.head_dim * options_.value_dim};
  kernels::state_maps_compose(
      ctx, {.kind = parts_.decay,
            .head_dim = options_.head_dim,
            .earlier_sums = args.initial_state.rows(group.heads.begin, heads).reshape(one),
            .earlier_decay = {},
            .sums = flat(group.scan.sums).rows(runs.first, 1),
            .decay = group.scan.decay.rows(runs.first, 1)});
}

void LinearAttention::compute_group(const Context& ctx, const Pass& pass, size_t g,
                                    const ConstTensorView& entering,
                                    const TensorView& leaving) const {
  const LinearAttentionForwardArgs& args = pass.args;
  const Span& heads = pass.groups[g].heads;
  kernels::linear_attention_forward(ctx, {.tokens = tokens(run_rows(), args.slopes, heads),
                                          .q = heads_of(args.q, heads),
                                          .k = heads_of(args.k, heads),
                                          .v = heads_of(args.v, heads),
                                          .state_in = entering,
                                          .out_acc = heads_of(args.out_acc, heads),
                                          .state_out = leaving});
}

void LinearAttention::begin_by_heads(const Context& ctx, Pass& pass) {
  allocate_groups(pass);
  make_group(ctx, pass, 0);
  start_group(ctx, pass, 0, Direction::kForward);
}

void LinearAttention::finish_by_heads(const Context& ctx, Pass& pass) {
  const LinearAttentionForwardArgs& args = pass.args;
  const OwnRuns& runs = sample_->own;
  const bool initial = runs.first >= 0 && present(args.initial_state);
  const bool at_once = own() == 1 && runs.first == 0 && !initial;
  run_groups(
      ctx, pass, Direction::kForward, at_once,
      [&](const Context& meanwhile, size_t g) { make_group(meanwhile, pass, g); },
      [&](const Context& meanwhile, size_t g) {
        if (own() == 0) return;
        const HeadGroup& group = pass.groups[g];
        if (initial) {
          const TensorView to = group.entering.rows(runs.first, 1);
          const int64_t heads = group.heads.length;
          const ConstTensorView from = args.initial_state.rows(group.heads.begin, heads);
          kernels::copy(meanwhile, from, to.reshape(from.shape()));
        }
        compute_group(meanwhile, pass, g, group.entering, {});
      });
  for (const HeadGroup& group : pass.groups) {
    if (own() > 0) kernels::copy(ctx, group.entering, heads_of(args.states, group.heads));
  }
}

void LinearAttention::backward_by_heads(const Context& ctx, Pass& pass,
                                        const LinearAttentionBackwardArgs& args) {
  const OwnRuns& runs = sample_->own;
  const bool first = own() == 1 && runs.first == 0, last = own() == 1 && runs.last == 0;
  int64_t rows_of_runs = 0;
  for (const kernels::LinearRun& run : runs.rows) rows_of_runs += run.length;
  if (rows_of_runs < args.dq_acc.dim(0) || ctx.measuring()) {
    for (const TensorView& gradient : {args.dq_acc, args.dk_acc, args.dv_acc}) {
      kernels::fill_zero(ctx, gradient);
    }
  }
  const auto compute = [&](const Context& meanwhile, size_t g, const ConstTensorView& entering,
                           const TensorView& leaving) {
    const Span& heads = pass.groups[g].heads;
    kernels::linear_attention_backward(meanwhile, {.tokens = tokens(run_rows(), args.slopes, heads),
                                                   .q = heads_of(args.q, heads),
                                                   .k = heads_of(args.k, heads),
                                                   .v = heads_of(args.v, heads),
                                                   .dout = heads_of(args.dout, heads),
                                                   .state_in = heads_of(args.states, heads),
                                                   .dstate_out = entering,
                                                   .dq_acc = heads_of(args.dq_acc, heads),
                                                   .dk_acc = heads_of(args.dk_acc, heads),
                                                   .dv_acc = heads_of(args.dv_acc, heads),
                                                   .dstate_in = leaving,
                                                   .overwrite = true});
  };
  const auto make = [&](const Context& meanwhile, size_t g) {
    const HeadGroup& group = pass.groups[g];
    if (own() == 0) return;
    const bool at_once = last && g > 0;
    if (first || at_once) clear_maps(meanwhile, group.scan);
    if (at_once || meanwhile.measuring()) compute(meanwhile, g, {}, group.scan.sums);
    if ((!first && !at_once) || meanwhile.measuring()) {
      kernels::linear_attention_backward_maps(
          meanwhile, {.tokens = tokens(run_rows(), args.slopes, group.heads),
                      .q = heads_of(args.q, group.heads),
                      .dout = heads_of(args.dout, group.heads),
                      .sums = group.scan.sums,
                      .log_decay = per_head(group.scan.decay)});
    }
  };
  allocate_groups(pass);
  make(ctx, 0);
  start_group(ctx, pass, 0, Direction::kBackward);
  run_groups(ctx, pass, Direction::kBackward, last, make, [&](const Context& meanwhile, size_t g) {
    if (own() > 0) compute(meanwhile, g, pass.groups[g].entering, {});
  });
}

}  // namespace longhaul::parallel
