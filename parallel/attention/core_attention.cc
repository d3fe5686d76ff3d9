#include "parallel/attention/core_attention.h"

#include <algorithm>
#include <array>
#include <bit>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/attention_sink.h"
#include "kernels/core/transfer.h"
#include "parallel/attention/execution.h"
#include "parallel/attention/plan_agreement.h"
#include "parallel/attention/sample_planner.h"
#include "parallel/plan/digest.h"
#include "parallel/plan/planners.h"
#include "parallel/server/schedule.h"

namespace longhaul::parallel {

namespace {

// Equal numbers for ranks that can read each other's memory.
std::vector<int> nodes(dist::Group& group, const dist::Window& window) {
  int64_t mine = group.rank();
  for (int peer = group.size() - 1; peer >= 0; --peer) {
    if (window.reachable(peer)) mine = peer;
  }
  Tensor send(DType::kI64, {1}), all(DType::kI64, {group.size()});
  send.span<int64_t>()[0] = mine;
  Stream stream;
  group.all_gather(stream, send, all, "nodes").wait(stream);
  return {all.span<int64_t>().begin(), all.span<int64_t>().end()};
}

TensorView input(const ConstTensorView& view) {
  // Home inputs; the execution checks that nothing is ever received into them.
  const auto strides = [&] {
    Shape result = view.shape();
    for (int i = 0; i < view.rank(); ++i) result[i] = view.stride(i);
    return result;
  }();
  return TensorView(const_cast<std::byte*>(view.raw()), view.dtype(), view.shape(), strides,
                    view.device());
}

// Arena bytes of a plan: those of an execution that runs nothing.
int64_t needed_bytes(const Context& ctx, ExecutionSetup setup, const FieldViews& home) {
  Arena measured = Arena::measure("plan", setup.communication->device());
  setup.communication = &measured;
  setup.log = nullptr;
  { const Execution execution(ctx, setup, home); }
  return measured.peak();
}
int64_t free_bytes(const Arena& arena) { return arena.capacity() - arena.used(); }

constexpr int64_t kMiB = int64_t{1} << 20;

}  // namespace

CoreAttention::Pending::Pending(std::unique_ptr<Execution> execution,
                                const CoreAttentionForward& args)
    : execution_(std::move(execution)), args_(args) {}
CoreAttention::Pending::Pending(Pending&&) noexcept = default;
CoreAttention::Pending::~Pending() = default;

CoreAttention::CoreAttention(dist::Group& group, const TokenLayout& layout,
                             const CoreAttentionOptions& options, std::span<const Strategy> table)
    : group_(group),
      options_(options),
      strategy_(strategy(options.strategy, table)),
      backward_strategy_(options.backward_strategy.empty()
                             ? strategy_
                             : strategy(options.backward_strategy, table)),
      measured_{.documents = Documents::whole(layout.tokens()),
                .layout = layout,
                .forward = {},
                .backward = {}},
      sample_(&measured_),
      planner_(std::make_shared<SamplePlanner>(options_, strategy_, backward_strategy_, layout,
                                               group.rank())) {
  LONGHAUL_CHECK(layout.ranks() == group.size());
  LONGHAUL_CHECK(options_.bias_slopes.empty() ||
                     static_cast<int64_t>(options_.bias_slopes.size()) == options_.heads.q_heads,
                 absl::StrCat(options_.bias_slopes.size(), " slopes for ", options_.heads.q_heads,
                              " query heads"));
  const Documents& whole = measured_.documents;
  const auto refusal = [&](const TokenLayout& rows, const Mask& mask) {
    const auto why = strategy_.refusal(planner_->problem(whole, rows, mask));
    return why ? why : backward_strategy_.refusal(planner_->problem(whole, rows, mask));
  };
  // Layouts of samples may mix the tokens of ranks as zigzag does.
  const TokenLayout mixed =
      options_.sample_layout ? TokenLayout::zigzag(layout.tokens(), layout.ranks()) : layout;
  if (const auto why = refusal(mixed, options_.mask)) fail(ErrorCode::kConfig, *why);
  if (options_.in_place && group_.size() > 1) {
    const HeadShape& h = options_.heads;
    const int64_t bytes =
        layout.most_rows() * h.kv_heads * (h.head_dim + h.value_dim) * size_of(options_.dtype);
    window_ = group_.make_window(2, bytes);
  }
  if (window_ != nullptr) node_of_ = nodes(group_, *window_);
  // Schedules keep to a limit; what is needed without moving anything is enough for any sample.
  const bool scheduled = bounded(Direction::kForward) || bounded(Direction::kBackward);
  if (scheduled && options_.servers.buffer_bytes == 0) {
    options_.servers.buffer_bytes =
        least_buffer_bytes(planner_->problem(whole, layout, options_.mask));
    planner_ = std::make_shared<SamplePlanner>(options_, strategy_, backward_strategy_, layout,
                                               group.rank());
  }
  // Until the first sample, plans are for measuring memory: whatever its documents, prefixes and
  // layout, no rank needs more than all keys of all others, as under a mask that hides nothing.
  // Plans of a strategy that refuses such a mask move no more for some documents than for one.
  const Mask open{.causal = false};
  const Problem any =
      planner_->problem(whole, layout, refusal(layout, open) ? options_.mask : open);
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    const bool forward = direction == Direction::kForward;
    (forward ? measured_.forward : measured_.backward) =
        bounded(direction) ? Plan{.slots = {Slot{}}, .steps = {}, .home_readers = {}}
                           : strategy_for(direction).plan(any, direction, group_.rank());
  }
}

const Strategy& CoreAttention::strategy_for(Direction direction) const {
  return direction == Direction::kForward ? strategy_ : backward_strategy_;
}

bool CoreAttention::bounded(Direction direction) const {
  return strategy_for(direction).plan == plan_disaggregated;
}

CoreAttention::~CoreAttention() = default;

void CoreAttention::announce(int64_t layer, Direction direction) {
  group_.job().place = absl::StrCat("layer ", layer, " attention ",
                                    direction == Direction::kForward ? "forward" : "backward");
}

bool CoreAttention::is_ahead(const Documents& documents) const {
  return ahead_ && ahead_->documents == documents;
}

void CoreAttention::prefetch(const Documents& documents) {
  if (plans_.contains(documents) || is_ahead(documents)) return;
  try {
    ahead_ = Ahead{documents, std::async(std::launch::async, [planner = planner_, documents] {
                     return planner->plans(documents);
                   })};
  } catch (const std::system_error& error) {
    fail(ErrorCode::kEnvironment,
         absl::StrCat("cannot start the thread that plans the next sample: ", error.what(),
                      "; allow one more thread a rank"));
  }
}

SamplePlans CoreAttention::make_plans(const Documents& documents) {
  const bool ahead = is_ahead(documents);
  SamplePlans plans =
      ahead ? std::exchange(ahead_, std::nullopt)->plans.get() : planner_->plans(documents);
  ++planned_count_;
  if (ahead) ++planned_ahead_count_;
  return plans;
}

void CoreAttention::prepare(const Documents& documents) {
  SamplePlans* plans = plans_.find(documents);
  std::optional<SamplePlans> made;
  const auto make = [&] {
    if (plans == nullptr) made.emplace(make_plans(documents));
  };
  if (must_agree(documents)) {
    const std::optional<Error> error = attempt(make);
    const auto digest_of_both = [](const SamplePlans& both) {
      const auto as_number = [](const Plan& plan) { return std::bit_cast<int64_t>(plan.digest); };
      return digest_of(std::array{as_number(both.forward), as_number(both.backward)});
    };
    agree_on_plans(group_, error, error ? 0 : digest_of_both(made ? *made : *plans));
  } else {
    make();
  }
  if (made) {
    plans = &plans_.add(std::move(*made));
    measured_.forward = measured_.backward = {};  // their time is over
  }
  sample_ = plans;
}

bool CoreAttention::must_agree(const Documents& documents) {
  if (group_.size() == 1 || !(bounded(Direction::kForward) || bounded(Direction::kBackward))) {
    return false;
  }
  constexpr size_t kMostRemembered = 1 << 16;
  if (agreed_.size() == kMostRemembered) agreed_.clear();
  std::vector<int64_t> borders = documents.begins();
  borders.push_back(documents.tokens());
  return agreed_.insert(digest_of(borders)).second;
}

const Plan& CoreAttention::plan(Direction direction) const {
  return direction == Direction::kForward ? sample_->forward : sample_->backward;
}

int64_t CoreAttention::forward_area() const {
  int64_t total = 0;
  for (const Step& step : sample_->forward.steps) {
    for (const Task& task : step.tasks) {
      for (const Segment& segment : task.segments) {
        total += area(segment) * task.q_heads.length;
      }
    }
  }
  return total;
}

ExecutionSetup CoreAttention::setup(const Context& ctx, Direction direction, Arena& communication,
                                    const std::optional<RandomKey>& dropout_key) {
  kernels::AttentionOptions kernel_options{.scale = options_.scale, .soft_cap = options_.soft_cap};
  if (!options_.bias_slopes.empty()) {
    if (bias_slopes_.view().rank() == 0) {
      const Shape shape{options_.heads.q_heads};
      bias_slopes_ = Tensor(DType::kF32, shape, ctx.device());
      upload(ctx.stream, std::as_bytes(std::span(options_.bias_slopes)), bias_slopes_.view().raw());
    }
    kernel_options.bias_slopes = bias_slopes_;
  }
  if (dropout_key) {
    kernel_options.dropout = {.probability = options_.dropout, .key = *dropout_key};
  }
  return {.group = &group_,
          .plan = &plan(direction),
          .layout = &layout(),
          .direction = direction,
          .what = direction == Direction::kForward ? "attention forward" : "attention backward",
          .heads = options_.heads,
          .dtype = options_.dtype,
          .kernel_options = kernel_options,
          .in_place = {window_.get(), &node_of_, epoch_},
          .communication = &communication,
          .log = log_};
}

// Once for a sample that is remembered. An error of one rank ends the job.
void CoreAttention::check_memory(Direction direction, int64_t needed, int64_t free) {
  if (needed > free) {
    const std::string problem = absl::StrCat(
        "strategy ", std::string(strategy_for(direction).name), " needs ", needed,
        " bytes of buffers for a sample of ", sample_->documents.count(), " documents");
    if (bounded(direction)) {
      fail(ErrorCode::kEnvironment,
           absl::StrCat(problem, ", ", needed - free,
                        " more than were reserved; raise parallel.server_buffer_mib by ",
                        (needed - free + kMiB - 1) / kMiB));
    }
    const char* field = direction == Direction::kForward ? "strategy" : "backward_strategy";
    fail(ErrorCode::kEnvironment,
         absl::StrCat(problem, ", but ", free, " were reserved; set parallel.", field,
                      ": \"ring\""));
  }
  sample_->fits[static_cast<size_t>(direction)] = true;
}

int64_t CoreAttention::reserved_bytes() const {
  // The limit counts rows; beside them, room to align the parts of several exchanges and of slots.
  constexpr int64_t kExchanges = 8, kSlots = int64_t{256} << 10;
  const int64_t margin = Staging::kAlignment * Staging::kMessages * group_.size();
  return options_.servers.buffer_bytes + kExchanges * margin + kSlots;
}

int64_t CoreAttention::enough_buffer_bytes() const {
  return parallel::enough_buffer_bytes(
      planner_->problem(sample_->documents, sample_->layout, options_.mask));
}

// Buffers up to the limit, and the kernels' scratch, which does not depend on sizes.
void CoreAttention::measure_bounded(const Context& ctx, Arena& communication,
                                    Direction direction) const {
  Arena::Scope buffers(communication);
  communication.allocate(DType::kF64, {(reserved_bytes() + 7) / 8});
  const HeadShape& h = options_.heads;
  const DType type = options_.dtype, sum = accumulator(type);
  const auto shape = [&](DType dtype, int64_t heads, int64_t dim) {
    return TensorView(nullptr, dtype, {1, heads, dim}, ctx.device());
  };
  const TensorView q = shape(type, h.q_heads, h.head_dim), k = shape(type, h.kv_heads, h.head_dim),
                   v = shape(type, h.kv_heads, h.value_dim),
                   out = shape(sum, h.q_heads, h.value_dim),
                   statistic(nullptr, sum, {h.q_heads, 1}, ctx.device());
  kernels::AttentionOptions options{.scale = options_.scale, .soft_cap = options_.soft_cap};
  if (!options_.bias_slopes.empty()) {
    options.bias_slopes = TensorView(nullptr, DType::kF32, {h.q_heads}, ctx.device());
  }
  if (options_.dropout > 0) options.dropout = {.probability = options_.dropout, .key = {}};
  const std::vector<Segment> one{{.q_row = 0, .q_len = 1, .k_row = 0, .k_len = 1}};
  const kernels::HeadMap heads{.q_begin = 0, .kv_begin = 0, .group = h.group()};
  if (direction == Direction::kForward) {
    kernels::attention_forward(ctx, {.segments = one,
                                     .heads = heads,
                                     .q = q,
                                     .k = k,
                                     .v = v,
                                     .options = options,
                                     .out_acc = out,
                                     .lse = statistic});
  } else {
    kernels::attention_backward(ctx, {.segments = one,
                                      .heads = heads,
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .options = options,
                                      .dout = shape(type, h.q_heads, h.value_dim),
                                      .lse = statistic,
                                      .delta = statistic,
                                      .dq_acc = shape(sum, h.q_heads, h.head_dim),
                                      .dk_acc = shape(sum, h.kv_heads, h.head_dim),
                                      .dv_acc = shape(sum, h.kv_heads, h.value_dim)});
  }
}

int64_t CoreAttention::buffer_bytes(const Context& measuring, const Documents& documents) const {
  LONGHAUL_CHECK(measuring.measuring());
  const SamplePlans plans = planner_->plans(documents);
  const HeadShape& h = options_.heads;
  const int64_t rows = plans.layout.rows(group_.rank());
  FieldViews home;
  const Slot slot{.q_rows = rows,
                  .k_rows = rows,
                  .q_heads = {0, h.q_heads},
                  .kv_heads = {0, h.kv_heads},
                  .fields = {}};
  Arena shapes = Arena::measure("home", measuring.device());
  for (const Field field : {Field::kQ, Field::kOut, Field::kLse, Field::kDOut, Field::kDelta,
                            Field::kDQ, Field::kK, Field::kV, Field::kDK, Field::kDV}) {
    at(home, field) = allocate_field(shapes, slot, field, h, options_.dtype);
  }
  int64_t most = 0;
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    const bool forward = direction == Direction::kForward;
    const ExecutionSetup setup{.group = &group_,
                               .plan = forward ? &plans.forward : &plans.backward,
                               .layout = &plans.layout,
                               .direction = direction,
                               .heads = h,
                               .dtype = options_.dtype,
                               .kernel_options = {},
                               .in_place = {window_.get(), &node_of_, 0},
                               .communication = &shapes};
    most = std::max(most, needed_bytes(measuring, setup, home));
  }
  return most;
}

CoreAttention::Pending CoreAttention::begin(const Context& ctx, Arena& communication,
                                            const CoreAttentionForward& args) {
  FieldViews home;
  at(home, Field::kQ) = input(args.q);
  at(home, Field::kK) = input(args.k);
  at(home, Field::kV) = input(args.v);
  at(home, Field::kOut) = args.out_acc;
  at(home, Field::kLse) = args.lse;
  if (!ctx.measuring()) {
    LONGHAUL_CHECK(sample_ != &measured_, "prepare() for a sample first");
    if (!sample_->fits[0]) {
      check_memory(
          Direction::kForward,
          needed_bytes(ctx, setup(ctx, Direction::kForward, communication, args.dropout_key), home),
          free_bytes(communication));
    }
    ++forward_count_;
    ++epoch_;
  } else if (bounded(Direction::kForward)) {
    measure_bounded(ctx, communication, Direction::kForward);
  }
  auto execution = std::make_unique<Execution>(
      ctx, setup(ctx, Direction::kForward, communication, args.dropout_key), home);
  execution->start(ctx);
  return Pending(std::move(execution), args);
}

void CoreAttention::finish(const Context& ctx, Pending pending) {
  pending.execution_->finish(ctx);
  const CoreAttentionForward& args = pending.args_;
  if (args.sink.rank() == 0) return;
  kernels::attention_sink_forward(ctx,
                                  {.sink = args.sink, .out_acc = args.out_acc, .lse = args.lse});
}

void CoreAttention::backward(const Context& ctx, Arena& communication,
                             const CoreAttentionBackward& args) {
  FieldViews home;
  at(home, Field::kQ) = input(args.q);
  at(home, Field::kK) = input(args.k);
  at(home, Field::kV) = input(args.v);
  at(home, Field::kDOut) = input(args.dout);
  at(home, Field::kLse) = input(args.lse);
  at(home, Field::kDelta) = input(args.delta);
  at(home, Field::kDQ) = args.dq_acc;
  at(home, Field::kDK) = args.dk_acc;
  at(home, Field::kDV) = args.dv_acc;
  if (!ctx.measuring()) {
    if (!sample_->fits[1]) {
      check_memory(
          Direction::kBackward,
          needed_bytes(ctx, setup(ctx, Direction::kBackward, communication, args.dropout_key),
                       home),
          free_bytes(communication));
    }
    ++epoch_;
  } else if (bounded(Direction::kBackward)) {
    measure_bounded(ctx, communication, Direction::kBackward);
  }
  Execution execution(ctx, setup(ctx, Direction::kBackward, communication, args.dropout_key), home);
  execution.start(ctx);
  if (args.sink.rank() > 0) {  // while the first transfers move
    kernels::attention_sink_backward(
        ctx, {.sink = args.sink, .lse = args.lse, .delta = args.delta, .dsink = args.dsink});
  }
  execution.finish(ctx);
}

}  // namespace longhaul::parallel
