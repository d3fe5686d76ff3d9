#include "launch/check/check.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "dist/null/null.h"
#include "kernels/core/random.h"
#include "kernels/core/transfer.h"
#include "kernels/pointwise.h"
#include "launch/check/reduced.h"
#include "launch/check/values.h"
#include "launch/train/engine.h"

namespace longhaul::launch {

namespace {

struct Operands {
  Values q, k, v, dout;
};
Operands random_operands(int64_t tokens, const parallel::HeadShape& h, DType dtype) {
  return {random_values("check q", tokens, h.q_heads, h.head_dim, dtype),
          random_values("check k", tokens, h.kv_heads, h.head_dim, dtype),
          random_values("check v", tokens, h.kv_heads, h.value_dim, dtype),
          random_values("check dout", tokens, h.q_heads, h.value_dim, dtype)};
}

// One rank's results, [row][head][dim]. The last, dsink, is a sum over all ranks; its heads, one
// number each, count as one head's row.
constexpr std::array<const char*, 6> kNames{"out", "lse", "dq", "dk", "dv", "dsink"};
constexpr size_t kSinkGradient = 5;
using Results = std::array<Values, kNames.size()>;

// Forward and backward as a layer calls them, in memory that was measured before the first sample.
class Layer {
 public:
  Layer(dist::Group& group, const Context& ctx, const parallel::TokenLayout& layout,
        const parallel::CoreAttentionOptions& options, std::span<const parallel::Strategy> table)
      : group_(group),
        ctx_(ctx),
        options_(options),
        attention_(group, layout, options, table),
        scratch_(Arena::measure("workspace", ctx.device())),
        communication_(Arena::measure("communication", ctx.device())) {}

  // sinks: [heads], or none.
  Results run(const Operands& operands, const Values& sinks, const parallel::Documents& documents) {
    if (scratch_.measuring()) {
      run_on(operands, sinks, scratch_, communication_, true);
      scratch_ = Arena("workspace", scratch_.peak(), ctx_.device());
      communication_ = Arena("communication", communication_.peak(), ctx_.device());
    }
    attention_.prepare(documents);
    scratch_.poison();
    communication_.poison();
    return run_on(operands, sinks, scratch_, communication_, false);
  }

  // Global positions of this rank's rows of the sample that was run last.
  std::vector<int64_t> positions() const { return attention_.layout().positions(group_.rank()); }

 private:
  Results run_on(const Operands& operands, const Values& sinks, Arena& scratch,
                 Arena& communication, bool measuring) {
    Context ctx = ctx_;
    ctx.scratch = &scratch;
    const DType type = options_.dtype, sum = accumulator(type);
    const std::vector<int64_t> rows = positions();
    const Tensor q = local(ctx, operands.q, rows, type), k = local(ctx, operands.k, rows, type),
                 v = local(ctx, operands.v, rows, type),
                 dout = local(ctx, operands.dout, rows, type);
    const Shape statistic{options_.heads.q_heads, static_cast<int64_t>(rows.size())};
    const Tensor out = poisoned(ctx, sum, dout.shape()), lse = poisoned(ctx, sum, statistic),
                 delta = poisoned(ctx, sum, statistic), dq = poisoned(ctx, sum, q.shape()),
                 dk = poisoned(ctx, sum, k.shape()), dv = poisoned(ctx, sum, v.shape());
    const Tensor sink = local(ctx, sinks, {0}, type);
    const Tensor dsink(sum, {sinks.dim}, ctx.device());
    if (!measuring) kernels::fill_zero(ctx, dsink);
    const ConstTensorView sink_view =
        sinks.dim > 0 ? ConstTensorView(sink.view().reshape({sinks.dim})) : ConstTensorView();
    const std::optional<RandomKey> dropout_key =
        options_.dropout > 0 ? std::optional(RandomKey{.seed = 1, .stream = 2}) : std::nullopt;
    auto pending = attention_.begin(ctx, communication,
                                    {.q = q,
                                     .k = k,
                                     .v = v,
                                     .out_acc = out,
                                     .lse = lse,
                                     .sink = sink_view,
                                     .dropout_key = dropout_key});
    attention_.finish(ctx, std::move(pending));
    kernels::attention_delta(ctx, out, dout, delta);
    attention_.backward(ctx, communication,
                        {.q = q,
                         .k = k,
                         .v = v,
                         .dout = dout,
                         .lse = lse,
                         .delta = delta,
                         .dq_acc = dq,
                         .dk_acc = dk,
                         .dv_acc = dv,
                         .sink = sink_view,
                         .dsink = dsink,
                         .dropout_key = dropout_key});
    if (measuring) return {};
    Values sink_gradient = on_host(ctx, dsink.view().reshape({1, 1, sinks.dim}), false);
    Stream host;
    group_
        .all_reduce(host,
                    TensorView(reinterpret_cast<std::byte*>(sink_gradient.data.data()), DType::kF64,
                               {sinks.dim}),
                    dist::ReduceOp::kSum, "check")
        .wait(host);
    return {on_host(ctx, out, false), on_host(ctx, lse, true), on_host(ctx, dq, false),
            on_host(ctx, dk, false),  on_host(ctx, dv, false), std::move(sink_gradient)};
  }

  dist::Group& group_;
  Context ctx_;
  parallel::CoreAttentionOptions options_;
  parallel::CoreAttention attention_;
  Arena scratch_, communication_;
};

// The whole sample on this rank alone.
class OneRank {
 public:
  OneRank(const Context& ctx, const parallel::CoreAttentionOptions& options, int64_t tokens)
      : group_(dist::null_group(0, 1)),
        layer_(*group_, ctx, parallel::TokenLayout::contiguous(tokens, 1), alone(options),
               parallel::strategies()) {}
  Results run(const Operands& operands, const Values& sinks, const parallel::Documents& documents) {
    return layer_.run(operands, sinks, documents);
  }

 private:
  static parallel::CoreAttentionOptions alone(parallel::CoreAttentionOptions options) {
    options.strategy = "ring";
    options.backward_strategy.clear();
    options.in_place = false;
    options.ranks_per_node = 1;
    options.sample_layout = {};
    options.servers = {};
    return options;
  }

  std::unique_ptr<dist::Group> group_;
  Layer layer_;
};

}  // namespace

Subject CheckedAttention::subject() const {
  const std::string& backward = options.backward_strategy;
  const bool differ = !backward.empty() && backward != options.strategy;
  return {.name = absl::StrCat("strategy ", options.strategy,
                               differ ? absl::StrCat(" (backward ", backward, ")") : "",
                               " on layout ", std::string(layout.name)),
          .setting = "parallel.strategy"};
}

CheckedAttention checked_attention(const Config& config, const SettledStrategies& settled) {
  const Parallel& parallel = config.parallel();
  const parallel::LayoutKind& kind = layout_kind(config);
  CheckedAttention checked{.layout = kind,
                           .tokens = config.data().sequence_length(),
                           .options = attention_options(config, settled),
                           .sinks = model_config(config).attention.sinks,
                           .ranks = {.data = 1, .sequence = parallel.sequence()}};
  if (!is_disaggregated(config)) return checked;
  checked.ranks = {
      .data = parallel.data(), .sequence = parallel.sequence(), .servers = parallel.servers()};
  const parallel::BalancedOptions balanced{.row_price = settled.row_price};
  checked.of_one = [&kind, balanced](const parallel::Documents& documents,
                                     const parallel::Mask& mask, int ranks) {
    return kind.of_sample(documents, mask, ranks, balanced);
  };
  return checked;
}

std::vector<Deviation> check_attention(dist::Group& group, const Context& ctx,
                                       const CheckedAttention& attention,
                                       std::span<const parallel::Strategy> table) {
  LONGHAUL_CHECK(attention.ranks.trainers() + attention.ranks.servers == group.size());
  const ReducedProblem problem = reduce(attention.layout, attention.tokens, attention.ranks,
                                        attention.options, attention.of_one);
  const int64_t tokens = problem.layout.tokens();
  const size_t tensors = attention.sinks ? kNames.size() : kSinkGradient;
  parallel::CoreAttentionOptions exact = problem.attention;
  exact.dtype = DType::kF64;
  OneRank one_exact(ctx, exact, tokens);

  std::vector<Deviation> deviations;
  std::vector<DType> dtypes{DType::kF64};
  if (problem.attention.dtype != DType::kF64) dtypes.push_back(problem.attention.dtype);
  for (const DType dtype : dtypes) {
    parallel::CoreAttentionOptions options = problem.attention;
    options.dtype = dtype;
    Layer all_ranks(group, ctx, problem.layout, options, table);
    OneRank one_rank(ctx, options, tokens);
    const Operands operands = random_operands(tokens, options.heads, dtype);
    const Values sinks =
        random_values("check sink", 1, 1, attention.sinks ? options.heads.q_heads : 0, dtype);
    std::vector<Deviation> worst(tensors);
    for (const parallel::Documents& documents : problem.samples) {
      const Results truth = one_exact.run(operands, sinks, documents);
      const Results many = all_ranks.run(operands, sinks, documents);
      const std::vector<int64_t> positions = all_ranks.positions();
      Results one;
      if (dtype != DType::kF64) one = one_rank.run(operands, sinks, documents);
      for (size_t i = 0; i < tensors; ++i) {
        const std::vector<int64_t>& rows = i == kSinkGradient ? std::vector<int64_t>{0} : positions;
        const double error = compare(group, many[i], false, truth[i], rows).worst();
        const double own =
            dtype == DType::kF64 ? 0 : compare(group, one[i], true, truth[i], rows).worst();
        keep_worst(worst[i], kNames[i], dtype, error, own);
      }
    }
    deviations.insert(deviations.end(), worst.begin(), worst.end());
  }
  return deviations;
}

}  // namespace longhaul::launch
