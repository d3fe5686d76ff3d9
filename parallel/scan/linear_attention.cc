#include "parallel/scan/linear_attention.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/linear_attention.h"
#include "kernels/pointwise.h"
#include "kernels/state_maps.h"
#include "parallel/attention/execution.h"

namespace longhaul::parallel {

namespace {

// Runs with tokens, those that continue each other joined: one map each.
TokenLayout joined_runs(const TokenLayout& layout) {
  std::vector<RunList> runs(static_cast<size_t>(layout.ranks()));
  for (int r = 0; r < layout.ranks(); ++r) {
    RunList& list = runs[static_cast<size_t>(r)];
    for (const Run& run : layout.runs(r)) {
      if (run.length == 0) continue;
      const bool range = run.stride == 1 || run.length == 1;
      if (!list.empty() && range && list.back().stride == 1 &&
          list.back().position(list.back().length) == run.global_begin) {
        list.back().length += run.length;
      } else {
        list.push_back({run.global_begin, run.length, range ? 1 : run.stride});
      }
    }
  }
  return TokenLayout(layout.tokens(), std::move(runs));
}

int64_t most_runs(const TokenLayout& layout) {
  size_t most = 0;
  for (int r = 0; r < layout.ranks(); ++r) most = std::max(most, layout.runs(r).size());
  return static_cast<int64_t>(most);
}

// As many runs on every rank, dealt there and back as zigzag does: for measuring.
TokenLayout runs_on_every_rank(int64_t runs, int ranks) {
  std::vector<RunList> lists(static_cast<size_t>(ranks));
  for (int64_t i = 0; i < runs * ranks; ++i) {
    const auto place = static_cast<size_t>(i % ranks);
    RunList& list = lists[i / ranks % 2 == 0 ? place : lists.size() - 1 - place];
    list.push_back({i, 1, 1});
  }
  return TokenLayout(runs * ranks, std::move(lists));
}

}  // namespace

// A pass under way.
struct LinearAttention::Pass {
  explicit Pass(Arena& communication) : scope(communication) {}

  Arena::Scope scope;
  TensorView sums, decay;  // [runs, H, D * Dv] and [runs, H, elements]: this rank's maps
  std::unique_ptr<Execution> execution;
  LinearAttentionForwardArgs forward;
};

LinearAttention::Pending::Pending(std::unique_ptr<Pass> pass) : pass_(std::move(pass)) {}
LinearAttention::Pending::Pending(Pending&&) noexcept = default;
LinearAttention::Pending::~Pending() = default;

LinearAttention::LinearAttention(dist::Group& group, const TokenLayout& layout,
                                 const LinearAttentionOptions& options)
    : group_(group), options_(options), method_(scan_method(options.method)) {
  LONGHAUL_CHECK(layout.ranks() == group.size());
  LONGHAUL_CHECK(options.heads > 0 && options.head_dim > 0 && options.value_dim > 0);
  if (options_.kind != LinearKind::kDecay || !options_.causal) {
    fail(ErrorCode::kConfig, "linear attention over ranks is causal, with a decay per head");
  }
  const TokenLayout runs = joined_runs(layout);
  rows_ = layout.rows(group.rank());
  most_runs_ = std::max<int64_t>(options_.most_runs > 0 ? options_.most_runs : most_runs(runs), 1);
  // Until the first sample, everything is for measuring memory.
  make_plans(runs_on_every_rank(most_runs_, group.size()));
  for (int64_t i = 0; i < most_runs_; ++i) {
    const int64_t begin = rows_ * i / most_runs_;
    runs_.push_back({.begin = begin, .length = rows_ * (i + 1) / most_runs_ - begin});
  }
  entered_ = left_ = true;
}

LinearAttention::~LinearAttention() = default;

void LinearAttention::announce(int64_t layer, Direction direction) {
  group_.job().place = absl::StrCat("layer ", layer, " linear attention ",
                                    direction == Direction::kForward ? "forward" : "backward");
}

void LinearAttention::prepare(const Documents& documents, const TokenLayout& of_sample) {
  LONGHAUL_CHECK(of_sample.ranks() == group_.size() && of_sample.rows(group_.rank()) == rows_ &&
                 of_sample.tokens() == documents.tokens());
  TokenLayout layout = joined_runs(of_sample);
  if (documents_ == documents && layout_ &&
      layout_->runs(group_.rank()) == layout.runs(group_.rank())) {
    return;
  }
  if (const int64_t runs = most_runs(layout); runs > most_runs_) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat("linear attention has memory for ", most_runs_,
                      " ranges of tokens on a rank, but the layout of a sample of ",
                      documents.count(), " documents has ", runs,
                      " on one; use layout zigzag or contiguous"));
  }
  make_plans(layout);
  runs_.clear();
  document_begins_.clear();
  first_run_ = last_run_ = -1;
  entered_ = left_ = false;
  int64_t row = 0;
  for (const Run& run : layout.runs(group_.rank())) {
    const auto index = static_cast<int64_t>(runs_.size());
    const int64_t begin = run.global_begin, end = begin + run.length;
    runs_.push_back({.begin = row, .length = run.length});
    const auto starts = [&](int64_t position) { return documents.local_position(position) == 0; };
    // The sample's first document continues initial_state, whatever that is.
    const std::vector<int64_t>& begins = documents.begins();
    const auto from = std::lower_bound(begins.begin(), begins.end(), std::max<int64_t>(begin, 1));
    for (auto it = from; it != begins.end() && *it < end; ++it) {
      document_begins_.push_back(row + *it - begin);
    }
    if (begin == 0) first_run_ = index;
    if (end == documents.tokens()) last_run_ = index;
    entered_ = entered_ || !starts(begin);
    left_ = left_ || (end < documents.tokens() && !starts(end));
    row += run.length;
  }
  maps_ = 0;
  for (int r = 0; r < layout.ranks(); ++r) maps_ += static_cast<int64_t>(layout.runs(r).size());
  last_owner_ = documents.tokens() > 0 ? layout.locate(documents.tokens() - 1).rank : 0;
  documents_ = documents;
  layout_ = std::move(layout);
}

void LinearAttention::make_plans(const TokenLayout& layout) {
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    plans_[static_cast<size_t>(direction)] =
        method_.plan(layout, options_.heads, direction, group_.rank());
  }
}

ExecutionSetup LinearAttention::setup(Direction direction, Arena& communication) {
  return {.group = &group_,
          .plan = &plan(direction),
          .layout = nullptr,
          .direction = direction,
          .what = direction == Direction::kForward ? "linear attention forward"
                                                   : "linear attention backward",
          .heads = {.q_heads = options_.heads,
                    .kv_heads = options_.heads,
                    .head_dim = options_.head_dim,
                    .value_dim = options_.value_dim,
                    .state_decay = kernels::StateDecay::kScalar},
          .dtype = options_.dtype,
          .kernel_options = {},
          .in_place = {},
          .communication = &communication};
}

kernels::LinearTokens LinearAttention::tokens(std::span<const double> slopes) const {
  return {.runs = runs_, .document_begins = document_begins_, .slopes = slopes};
}

Shape LinearAttention::state_shape() const {
  return {static_cast<int64_t>(runs_.size()), options_.heads, options_.head_dim,
          options_.value_dim};
}

TensorView LinearAttention::flat(const TensorView& states) const {
  return states.reshape({states.dim(0), options_.heads, options_.head_dim * options_.value_dim});
}

void LinearAttention::allocate_maps(Pass& pass, Arena& communication) const {
  const DType acc = accumulator(options_.dtype);
  pass.sums = communication.allocate(acc, state_shape());
  pass.decay = communication.allocate(acc, {static_cast<int64_t>(runs_.size()), options_.heads, 1});
}

// Starts the exchange of the maps; what enters each run arrives in `entering`.
void LinearAttention::start(const Context& ctx, Pass& pass, Direction direction,
                            Arena& communication, const TensorView& entering) {
  FieldViews home, arriving;
  at(home, Field::kState) = flat(pass.sums);
  at(home, Field::kDecay) = pass.decay;
  at(arriving, Field::kState) = flat(entering);
  pass.execution =
      std::make_unique<Execution>(ctx, setup(direction, communication), home, arriving);
  pass.execution->start(ctx);
}

LinearAttention::Pending LinearAttention::begin(const Context& ctx, Arena& communication,
                                                const LinearAttentionForwardArgs& args) {
  if (!ctx.measuring()) {
    LONGHAUL_CHECK(documents_.has_value(), "prepare() for a sample first");
    ++forward_count_;
  }
  auto pass = std::make_unique<Pass>(communication);
  pass->forward = args;
  allocate_maps(*pass, communication);
  const int64_t own = static_cast<int64_t>(runs_.size());
  const kernels::LinearTokens tokens = this->tokens(args.slopes);
  // One map alone is composed with nothing.
  if (own > 0 && (maps_ > 1 || args.final_state.rank() > 0)) {
    kernels::linear_attention_maps(ctx, {.tokens = tokens,
                                         .k = args.k,
                                         .v = args.v,
                                         .sums = pass->sums,
                                         .log_decay = pass->decay.reshape({own, options_.heads})});
    if (first_run_ >= 0 && args.initial_state.rank() > 0) {
      const int64_t elements = options_.head_dim * options_.value_dim;
      kernels::state_maps_compose(
          ctx, {.kind = kernels::StateDecay::kScalar,
                .head_dim = options_.head_dim,
                .earlier_sums = args.initial_state.reshape({1, options_.heads, elements}),
                .earlier_decay = {},
                .sums = flat(pass->sums).rows(first_run_, 1),
                .decay = pass->decay.rows(first_run_, 1)});
    }
  }
  start(ctx, *pass, Direction::kForward, communication, args.states.rows(0, own));
  if (own > 0) {
    kernels::linear_attention_forward(
        polling(ctx, *pass),
        {.tokens = tokens, .q = args.q, .k = args.k, .v = args.v, .out_acc = args.out_acc});
  }
  return Pending(std::move(pass));
}

// Lets the maps travel while a kernel runs.
Context LinearAttention::polling(const Context& ctx, Pass& pass) {
  Context polling = ctx;
  polling.poll = [&execution = *pass.execution, outer = ctx.poll] {
    execution.poll();
    if (outer) outer();
  };
  return polling;
}

void LinearAttention::finish(const Context& ctx, Pending pending) {
  Pass& pass = *pending.pass_;
  const LinearAttentionForwardArgs& args = pass.forward;
  pass.execution->finish(ctx);
  const int64_t own = static_cast<int64_t>(runs_.size());
  const bool initial = first_run_ >= 0 && args.initial_state.rank() > 0;
  const TensorView states = args.states.rows(0, own);
  if (initial) {
    kernels::copy(ctx, args.initial_state,
                  states.rows(first_run_, 1).reshape(args.initial_state.shape()));
  }
  if (own > 0 && (entered_ || initial)) {
    kernels::linear_attention_add_out(
        ctx,
        {.tokens = tokens(args.slopes), .q = args.q, .state_in = states, .out_acc = args.out_acc});
  }
  if (args.final_state.rank() > 0) share_final_state(ctx, pass);
}

// What leaves the last run.
void LinearAttention::share_final_state(const Context& ctx, Pass& pass) {
  const LinearAttentionForwardArgs& args = pass.forward;
  if (maps_ == 0) {  // no tokens
    const bool initial = args.initial_state.rank() > 0;
    if (initial) kernels::copy(ctx, args.initial_state, args.final_state);
    if (!initial) kernels::fill_zero(ctx, args.final_state);
    return;
  }
  if (last_run_ >= 0) {
    const TensorView last = flat(pass.sums).rows(last_run_, 1);
    // The map of a sample in one run has the initial state in it already.
    if (first_run_ != last_run_) {
      kernels::state_maps_compose(ctx, {.kind = kernels::StateDecay::kScalar,
                                        .head_dim = options_.head_dim,
                                        .earlier_sums = flat(args.states).rows(last_run_, 1),
                                        .earlier_decay = {},
                                        .sums = last,
                                        .decay = pass.decay.rows(last_run_, 1)});
    }
    kernels::copy(ctx, last.reshape(args.final_state.shape()), args.final_state);
  }
  if (ctx.measuring()) return;
  Stream stream = ctx.stream;
  group_.broadcast(stream, args.final_state, last_owner_, "linear attention final state")
      .wait(stream);
}

void LinearAttention::backward(const Context& ctx, Arena& communication,
                               const LinearAttentionBackwardArgs& args) {
  Pass pass(communication);
  allocate_maps(pass, communication);
  const int64_t own = static_cast<int64_t>(runs_.size());
  const TensorView dstates = communication.allocate(accumulator(options_.dtype), state_shape());
  const kernels::LinearTokens tokens = this->tokens(args.slopes);
  if (own > 0 && maps_ > 1) {
    kernels::linear_attention_backward_maps(
        ctx, {.tokens = tokens,
              .q = args.q,
              .dout = args.dout,
              .sums = pass.sums,
              .log_decay = pass.decay.reshape({own, options_.heads})});
  }
  start(ctx, pass, Direction::kBackward, communication, dstates);
  for (const TensorView& gradient : {args.dq_acc, args.dk_acc, args.dv_acc}) {
    kernels::fill_zero(ctx, gradient);
  }
  if (own > 0) {
    kernels::linear_attention_backward(polling(ctx, pass), {.tokens = tokens,
                                                            .q = args.q,
                                                            .k = args.k,
                                                            .v = args.v,
                                                            .dout = args.dout,
                                                            .state_in = args.states.rows(0, own),
                                                            .dq_acc = args.dq_acc,
                                                            .dk_acc = args.dk_acc,
                                                            .dv_acc = args.dv_acc});
  }
  pass.execution->finish(ctx);
  if (own > 0 && left_) {
    kernels::linear_attention_add_dk_dv(ctx, {.tokens = tokens,
                                              .k = args.k,
                                              .v = args.v,
                                              .dstate_out = dstates,
                                              .dk_acc = args.dk_acc,
                                              .dv_acc = args.dv_acc});
  }
}

}  // namespace longhaul::parallel
