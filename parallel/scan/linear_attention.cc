#include "parallel/scan/linear_attention.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/pointwise.h"
#include "parallel/plan/decayed_scan.h"
#include "parallel/scan/kinds.h"
#include "parallel/scan/pass.h"

namespace longhaul::parallel {

namespace {

constexpr std::string_view kForwardRows = "linear attention rows forward";
constexpr std::string_view kBackwardRows = "linear attention rows backward";

bool present(const ConstTensorView& view) { return view.rank() > 0; }

}  // namespace

std::string_view name(LinearKind kind) {
  switch (kind) {
    case LinearKind::kDecay:
      return "decay";
    case LinearKind::kGated:
      return "gated";
    case LinearKind::kDeltaRule:
      return "delta_rule";
  }
  check_failed(__FILE__, __LINE__, "every kind is listed");
}

LinearAttention::Pending::Pending(std::unique_ptr<Pass> pass) : pass_(std::move(pass)) {}
LinearAttention::Pending::Pending(Pending&&) noexcept = default;
LinearAttention::Pending::~Pending() = default;

LinearAttention::LinearAttention(dist::Group& group, const TokenLayout& layout,
                                 const LinearAttentionOptions& options)
    : group_(group),
      options_(options),
      method_(scan_method(options.method)),
      parts_(parts_of(options.kind)),
      rows_(layout.rows(group.rank())) {
  LONGHAUL_CHECK(layout.ranks() == group.size());
  LONGHAUL_CHECK(options.heads > 0 && options.head_dim > 0 && options.value_dim > 0);
  if (!options_.causal && options_.kind != LinearKind::kDecay) {
    fail(ErrorCode::kConfig,
         absl::StrCat(std::string(parts_.name),
                      " is causal only; use a decay per head, or softmax attention"));
  }
  if (options_.decay_bound > 0 && options_.kind != LinearKind::kDecay) {
    fail(ErrorCode::kConfig,
         absl::StrCat("a decay bound of ", options_.decay_bound,
                      " needs decays that are known "
                      "before the run, which ",
                      std::string(parts_.name), " has not; set parallel.linear_decay_bound: 0"));
  }
  const TokenLayout runs = joined_runs(layout);
  const bool striped = has_stripes(runs);
  const int64_t of_layout = striped ? 1 : most_runs(runs);
  most_runs_ = std::max<int64_t>({1, of_layout, options_.most_runs});
  // Until the first sample, everything is for measuring memory.
  sample_ = std::make_unique<Sample>();
  if (striped || options_.most_runs > 0) sample_->relayout.emplace(layout, group.rank());
  const int64_t rows = sample_->relayout ? sample_->relayout->contiguous_rows() : rows_;
  sample_->own = any_runs(rows, most_runs_);
  make_plans(runs_on_every_rank(most_runs_, group.size()));
}

LinearAttention::~LinearAttention() = default;

void LinearAttention::announce(int64_t layer, Direction direction) {
  group_.job().place = absl::StrCat("layer ", layer, " linear attention ",
                                    direction == Direction::kForward ? "forward" : "backward");
}

void LinearAttention::prepare(const Documents& documents, const TokenLayout& of_sample) {
  LONGHAUL_CHECK(of_sample.ranks() == group_.size() && of_sample.rows(group_.rank()) == rows_ &&
                 of_sample.tokens() == documents.tokens());
  TokenLayout runs = joined_runs(of_sample);
  std::vector<RunList> layout;
  for (int r = 0; r < runs.ranks(); ++r) layout.push_back(runs.runs(r));
  if (layout_ == layout) {  // and with it the plans
    if (documents_ == documents) return;
    sample_->own = own_runs(*sample_->runs, documents, group_.rank());
    documents_ = documents;
    return;
  }
  auto sample = std::make_unique<Sample>();
  if (has_stripes(runs) || most_runs(runs) > most_runs_) {
    if (!has_stripes(runs) && options_.most_runs == 0) {
      fail(ErrorCode::kEnvironment,
           absl::StrCat("linear attention has memory for ", most_runs_,
                        " ranges of tokens on a rank, but the layout of a sample of ",
                        documents.count(), " documents has ", most_runs(runs),
                        " on one; use layout zigzag or contiguous"));
    }
    sample->relayout.emplace(of_sample, group_.rank());
    runs = joined_runs(TokenLayout::contiguous(of_sample.tokens(), of_sample.ranks()));
  }
  sample->own = own_runs(runs, documents, group_.rank());
  sample_ = std::move(sample);
  make_plans(runs);
  documents_ = documents;
  layout_ = std::move(layout);
}

void LinearAttention::make_plans(const TokenLayout& runs) {
  sample_->runs = runs;
  use_plans({});
  for (const Span& heads : head_groups()) {
    const auto of = [&](Direction direction) {
      return method_.plan(runs, heads.length, direction, group_.rank());
    };
    sample_->plans_of_groups.push_back({of(Direction::kForward), of(Direction::kBackward)});
  }
}

// Layers of which the same heads forget share plans. No slopes: no head forgets, which takes the
// most memory.
void LinearAttention::use_plans(std::span<const double> slopes) {
  std::vector<bool> forgets = forgetting_heads(*sample_->runs, slopes, options_.decay_bound);
  if (std::ranges::none_of(forgets, std::identity())) forgets.clear();
  const auto [plans, made] = sample_->plans.try_emplace(forgets);
  sample_->used = &plans->second;
  if (!made) return;
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    plans->second[static_cast<size_t>(direction)] =
        plan_scan(method_, *sample_->runs, options_.heads, forgets, direction, group_.rank());
  }
}

const Plan& LinearAttention::plan(Direction direction) const {
  return (*sample_->used)[static_cast<size_t>(direction)];
}

// Whether the method composes maps that arrive, which land in staging memory.
bool LinearAttention::lands_maps() const {
  const TokenLayout runs = runs_on_every_rank(most_runs_, group_.size());
  for (int r = 0; r < group_.size(); ++r) {
    for (const Step& step : method_.plan(runs, options_.heads, Direction::kForward, r).steps) {
      for (const Transfer& t : step.transfers) {
        if (!t.send && t.peer != r && t.reduce == Reduce::kCompose) return true;
      }
    }
  }
  return false;
}

RunRows LinearAttention::run_rows() const {
  return {sample_->own.rows, sample_->own.document_begins};
}

int64_t LinearAttention::own() const { return static_cast<int64_t>(sample_->own.rows.size()); }

Shape LinearAttention::state_shape() const {
  return {own(), options_.heads, options_.head_dim, options_.value_dim};
}

TensorView LinearAttention::flat(const TensorView& states) {
  return states.reshape({states.dim(0), states.dim(1), states.dim(2) * states.dim(3)});
}

void LinearAttention::allocate_maps(Pass& pass, Scan& scan) const {
  const DType acc = accumulator(options_.dtype);
  const int64_t elements = kernels::decay_elements(parts_.decay, options_.head_dim);
  scan.sums = pass.arena.allocate(acc, state_shape());
  scan.decay = pass.arena.allocate(acc, {own(), options_.heads, elements});
}

// Starts the exchange of the maps; what enters each run will be in `entering`.
void LinearAttention::start(const Context& ctx, Pass& pass, Scan& scan, Direction direction,
                            const TensorView& entering) {
  start(ctx, pass, scan, direction, entering, plan(direction));
}

void LinearAttention::start(const Context& ctx, Pass& pass, Scan& scan, Direction direction,
                            const TensorView& entering, const Plan& plan) {
  FieldViews home, arriving;
  at(home, Field::kState) = flat(scan.sums);
  at(home, Field::kDecay) = scan.decay;
  at(arriving, Field::kState) = flat(entering);
  const ExecutionSetup setup{.group = &group_,
                             .plan = &plan,
                             .layout = nullptr,
                             .direction = direction,
                             .what = direction == Direction::kForward ? "linear attention forward"
                                                                      : "linear attention backward",
                             .heads = {.q_heads = scan.sums.dim(1),
                                       .kv_heads = scan.sums.dim(1),
                                       .head_dim = options_.head_dim,
                                       .value_dim = options_.value_dim,
                                       .state_decay = parts_.decay},
                             .dtype = options_.dtype,
                             .kernel_options = {},
                             .in_place = {},
                             .communication = &pass.arena};
  scan.execution = std::make_unique<Execution>(ctx, setup, home, arriving);
  scan.execution->start(ctx);
  if (ctx.measuring() && most_runs_ > 1 && lands_maps()) {
    // Which of a rank's maps come from others at a time depends on the sample: at most all of them.
    const int64_t parts = Staging::kMessages * group_.size();
    pass.arena.allocate(scan.sums.dtype(), scan.sums.shape());
    pass.arena.allocate(scan.decay.dtype(), scan.decay.shape());
    pass.arena.allocate(DType::kF64, {parts * Staging::kAlignment / size_of(DType::kF64)});
  }
}

// Lets the maps travel while a kernel runs.
Context LinearAttention::polling(const Context& ctx, Pass& pass) {
  Context polling = ctx;
  polling.poll = [&pass, outer = ctx.poll] {
    const Scan& scan = pass.under_way == nullptr ? pass.scan : *pass.under_way;
    if (scan.execution != nullptr) scan.execution->advance();
    // Later steps of two scans at once would meet in another order on each rank.
    if (pass.other_scan.execution != nullptr) pass.other_scan.execution->poll();
    if (outer) outer();
  };
  return polling;
}

// Memory for a tensor's rows in the contiguous layout.
TensorView LinearAttention::contiguous(Pass& pass, const ConstTensorView& like) const {
  if (!present(like)) return {};
  Shape shape = like.shape();
  shape[0] = sample_->relayout->contiguous_rows();
  return pass.arena.allocate(like.dtype(), shape);
}

// Inputs with the rows that are computed here: those of the caller or, in memory of the pass, those
// of a re-layout.
void LinearAttention::fetch(const Context& ctx, Pass& pass, std::string_view what,
                            std::initializer_list<ConstTensorView*> inputs) {
  if (!sample_->relayout) return;
  std::vector<ConstTensorView> from;
  std::vector<TensorView> to;
  for (ConstTensorView* input : inputs) {
    if (!present(*input)) continue;
    from.push_back(*input);
    to.push_back(contiguous(pass, *input));
    *input = to.back();
  }
  sample_->relayout->to_contiguous(ctx, group_, pass.arena, from, to, what);
}

void LinearAttention::give_back(const Context& ctx, Pass& pass, std::string_view what,
                                std::initializer_list<std::pair<TensorView, TensorView>> results) {
  if (!sample_->relayout) return;
  std::vector<ConstTensorView> from;
  std::vector<TensorView> to;
  for (const auto& [computed, wanted] : results) {
    if (!present(wanted)) continue;
    from.emplace_back(computed);
    to.push_back(wanted);
  }
  sample_->relayout->from_contiguous(ctx, group_, pass.arena, from, to, what);
}

LinearAttention::Pending LinearAttention::begin(const Context& ctx, Arena& communication,
                                                const LinearAttentionForwardArgs& caller) {
  if (!ctx.measuring()) {
    LONGHAUL_CHECK(documents_.has_value(), "prepare() for a sample first");
    ++forward_count_;
  }
  auto pass = std::make_unique<Pass>(communication);
  pass->caller = pass->args = caller;
  LinearAttentionForwardArgs& args = pass->args;
  fetch(ctx, *pass, kForwardRows, {&args.q, &args.k, &args.v, &args.log_gate, &args.beta});
  if (sample_->relayout) args.out_acc = contiguous(*pass, caller.out_acc);
  args.states = caller.states.rows(0, options_.causal ? own() : 2 * own());
  if (options_.decay_bound > 0 && !ctx.measuring()) use_plans(args.slopes);
  if (options_.causal) {
    begin_causal(ctx, *pass);
  } else {
    begin_both(ctx, *pass);
  }
  return Pending(std::move(pass));
}

void LinearAttention::finish(const Context& ctx, Pending pending) {
  Pass& pass = *pending.pass_;
  if (options_.causal) {
    finish_causal(ctx, pass);
  } else {
    finish_both(ctx, pass);
  }
  give_back(ctx, pass, kForwardRows, {{pass.args.out_acc, pass.caller.out_acc}});
  if (present(pass.args.final_state)) share_final_state(ctx, pass);
}

void LinearAttention::backward(const Context& ctx, Arena& communication,
                               const LinearAttentionBackwardArgs& caller) {
  Pass pass(communication);
  LinearAttentionBackwardArgs args = caller;
  fetch(ctx, pass, kBackwardRows,
        {&args.q, &args.k, &args.v, &args.dout, &args.log_gate, &args.beta});
  if (sample_->relayout) {
    for (TensorView* result :
         {&args.dq_acc, &args.dk_acc, &args.dv_acc, &args.dlog_gate, &args.dbeta}) {
      *result = contiguous(pass, *result);
    }
  }
  args.states = caller.states.rows(0, options_.causal ? own() : 2 * own());
  if (options_.decay_bound > 0 && !ctx.measuring()) use_plans(args.slopes);
  if (options_.causal) {
    backward_causal(ctx, pass, args);
  } else {
    backward_both(ctx, pass, args);
  }
  give_back(ctx, pass, kBackwardRows,
            {{args.dq_acc, caller.dq_acc},
             {args.dk_acc, caller.dk_acc},
             {args.dv_acc, caller.dv_acc},
             {args.dlog_gate, caller.dlog_gate},
             {args.dbeta, caller.dbeta}});
}

}  // namespace longhaul::parallel
