#include "launch/check/linear_check.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "dist/null/null.h"
#include "launch/check/reduced.h"
#include "launch/check/values.h"
#include "launch/train/engine.h"

namespace longhaul::launch {

namespace {

constexpr int64_t kMostHeads = 8;

struct Operands {
  Values q, k, v, dout;
  Values log_gate, beta;  // of kinds that have them; else of no heads
};

constexpr std::array<const char*, 6> kNames{"out", "dq", "dk", "dv", "dgate", "dbeta"};
using Results = std::array<Values, kNames.size()>;

// A token keeps between half and nearly all.
Values gates(int64_t tokens, const parallel::LinearAttentionOptions& o, DType dtype) {
  const bool each = o.kind == parallel::LinearKind::kGated;
  const int64_t heads = o.kind == parallel::LinearKind::kDecay ? 0 : o.heads;
  Values values =
      random_values("check gate", tokens, heads, each ? o.head_dim : 1, accumulator(dtype));
  for (double& value : values.data) value = -0.7 / (1 + std::exp(2 + value));
  return values;
}

// Between 0 and 1.
Values strengths(int64_t tokens, const parallel::LinearAttentionOptions& o, DType dtype) {
  const int64_t heads = o.kind == parallel::LinearKind::kDeltaRule ? o.heads : 0;
  Values values = random_values("check strength", tokens, heads, 1, accumulator(dtype));
  for (double& value : values.data) value = 1 / (1 + std::exp(-value));
  return values;
}

// Of the delta rule, of about length 1, so that what is overwritten is not overshot.
Values queries(Values values, const parallel::LinearAttentionOptions& o) {
  if (o.kind != parallel::LinearKind::kDeltaRule) return values;
  // A power of two, which leaves values representable.
  const int exponent =
      static_cast<int>(std::ceil(0.5 * std::log2(static_cast<double>(o.head_dim))));
  for (double& value : values.data) value = std::ldexp(value, -exponent);
  return values;
}

// Forward and backward as a layer calls them, in memory that was measured before the first sample.
class Layer {
 public:
  Layer(dist::Group& group, const Context& ctx, const parallel::TokenLayout& layout,
        const parallel::LinearAttentionOptions& options, const std::vector<double>& slopes)
      : ctx_(ctx),
        rank_(group.rank()),
        layout_(layout),
        options_(options),
        slopes_(slopes),
        attention_(group, layout, options),
        scratch_(Arena::measure("workspace", ctx.device())),
        communication_(Arena::measure("communication", ctx.device())) {}

  Results run(const Operands& operands, const parallel::Documents& documents,
              const parallel::TokenLayout& of_sample) {
    if (scratch_.measuring()) {
      run_on(operands, scratch_, communication_, true);
      scratch_ = Arena("workspace", scratch_.peak(), ctx_.device());
      communication_ = Arena("communication", communication_.peak(), ctx_.device());
    }
    layout_ = of_sample;
    attention_.prepare(documents, of_sample);
    scratch_.poison();
    communication_.poison();
    return run_on(operands, scratch_, communication_, false);
  }

 private:
  Results run_on(const Operands& operands, Arena& scratch, Arena& communication, bool measuring) {
    Context ctx = ctx_;
    ctx.scratch = &scratch;
    const DType type = options_.dtype, sum = accumulator(type);
    const std::vector<int64_t> rows = layout_.positions(rank_);
    const Tensor q = local(ctx, operands.q, rows, type), k = local(ctx, operands.k, rows, type),
                 v = local(ctx, operands.v, rows, type),
                 dout = local(ctx, operands.dout, rows, type);
    const Tensor out = poisoned(ctx, sum, dout.shape()), dq = poisoned(ctx, sum, q.shape()),
                 dk = poisoned(ctx, sum, k.shape()), dv = poisoned(ctx, sum, v.shape());
    const Tensor states = poisoned(
        ctx, sum, {attention_.runs(), options_.heads, options_.head_dim, options_.value_dim});
    // One number for each head under the shape [rows, heads].
    const Tensor gates = local(ctx, operands.log_gate, rows, sum),
                 strengths = local(ctx, operands.beta, rows, sum);
    const Tensor dgates = poisoned(ctx, sum, gates.shape()),
                 dstrengths = poisoned(ctx, sum, strengths.shape());
    auto pending = attention_.begin(ctx, communication,
                                    {.q = q,
                                     .k = k,
                                     .v = v,
                                     .slopes = slopes_,
                                     .log_gate = as_argument(gates),
                                     .beta = as_argument(strengths),
                                     .out_acc = out,
                                     .states = states});
    attention_.finish(ctx, std::move(pending));
    attention_.backward(ctx, communication,
                        {.q = q,
                         .k = k,
                         .v = v,
                         .dout = dout,
                         .slopes = slopes_,
                         .log_gate = as_argument(gates),
                         .beta = as_argument(strengths),
                         .states = states,
                         .dq_acc = dq,
                         .dk_acc = dk,
                         .dv_acc = dv,
                         .dlog_gate = as_argument(dgates),
                         .dbeta = as_argument(dstrengths)});
    if (measuring) return {};
    return {on_host(ctx, out, false), on_host(ctx, dq, false),     on_host(ctx, dk, false),
            on_host(ctx, dv, false),  on_host(ctx, dgates, false), on_host(ctx, dstrengths, false)};
  }

  // As LinearAttention takes it: absent without heads, [rows, heads] with one number for each.
  TensorView as_argument(const Tensor& x) const {
    if (x.shape()[1] == 0) return {};
    const bool each = options_.kind == parallel::LinearKind::kGated;
    return each ? x.view() : x.view().reshape({x.shape()[0], x.shape()[1]});
  }

  Context ctx_;
  int rank_;
  parallel::TokenLayout layout_;
  parallel::LinearAttentionOptions options_;
  std::vector<double> slopes_;
  parallel::LinearAttention attention_;
  Arena scratch_, communication_;
};

// The whole sample on this rank alone.
class OneRank {
 public:
  OneRank(const Context& ctx, parallel::LinearAttentionOptions options,
          const std::vector<double>& slopes, int64_t tokens)
      : group_(dist::null_group(0, 1)),
        layout_(parallel::TokenLayout::contiguous(tokens, 1)),
        layer_(*group_, ctx, layout_, alone(std::move(options)), slopes) {}
  Results run(const Operands& operands, const parallel::Documents& documents) {
    return layer_.run(operands, documents, layout_);
  }

 private:
  static parallel::LinearAttentionOptions alone(parallel::LinearAttentionOptions options) {
    options.method = "all_gather";
    options.most_runs = 0;
    return options;
  }

  std::unique_ptr<dist::Group> group_;
  parallel::TokenLayout layout_;
  Layer layer_;
};

}  // namespace

Subject CheckedLinearAttention::subject() const {
  return {.name = absl::StrCat("linear attention by ", options.method, " on layout ",
                               std::string(layout.name)),
          .setting = "parallel.linear_method"};
}

CheckedLinearAttention checked_linear_attention(const Config& config, const std::string& method) {
  const model::ModelConfig model = model_config(config);
  int64_t layer = 0;
  while (!model.is_linear(layer)) ++layer;
  const int ranks = config.parallel().sequence();
  const parallel::CoreAttentionOptions softmax = attention_options(config);
  const ReducedProblem problem =
      reduce(layout_kind(config), config.data().sequence_length(), {.sequence = ranks}, softmax);
  CheckedLinearAttention checked{
      .layout = layout_kind(config),
      .reduced = problem.layout,
      .samples = problem.samples,
      .sample_layout =
          [own = problem.layout, softmax, ranks](const parallel::Documents& documents) {
            return softmax.sample_layout ? softmax.sample_layout(documents, softmax.mask, ranks)
                                         : own;
          },
      .options = *first_linear_attention(config),
      .slopes = {}};
  checked.options.method = method;
  checked.options.decay_bound = 0;  // what is left out on purpose is told apart from mistakes
  // Of many heads some, from the one that forgets first to the one that forgets last.
  const int64_t all = model.linear_heads(), some = std::min(all, kMostHeads);
  checked.options.heads = some;
  if (checked.options.kind != parallel::LinearKind::kDecay) return checked;
  const std::vector<double> slopes = linear_slopes(model.linear, all, layer, model.layers);
  for (int64_t i = 0; i < some; ++i) {
    checked.slopes.push_back(
        slopes[static_cast<size_t>(some == 1 ? 0 : i * (all - 1) / (some - 1))]);
  }
  return checked;
}

std::vector<Deviation> check_linear_attention(dist::Group& sequence, const Context& ctx,
                                              const CheckedLinearAttention& attention) {
  const int64_t tokens = attention.reduced.tokens();
  const parallel::LinearAttentionOptions& given = attention.options;
  parallel::LinearAttentionOptions exact = given;
  exact.dtype = DType::kF64;
  OneRank one_exact(ctx, exact, attention.slopes, tokens);

  std::vector<Deviation> deviations;
  std::vector<DType> dtypes{DType::kF64};
  if (given.dtype != DType::kF64) dtypes.push_back(given.dtype);
  for (const DType dtype : dtypes) {
    parallel::LinearAttentionOptions options = given;
    options.dtype = dtype;
    Layer all_ranks(sequence, ctx, attention.reduced, options, attention.slopes);
    OneRank one_rank(ctx, options, attention.slopes, tokens);
    const auto random = [&](const char* name, int64_t dim) {
      return random_values(name, tokens, given.heads, dim, dtype);
    };
    const Operands operands{.q = queries(random("check q", given.head_dim), given),
                            .k = queries(random("check k", given.head_dim), given),
                            .v = random("check v", given.value_dim),
                            .dout = random("check dout", given.value_dim),
                            .log_gate = gates(tokens, given, dtype),
                            .beta = strengths(tokens, given, dtype)};
    const size_t results = given.kind == parallel::LinearKind::kDecay   ? 4
                           : given.kind == parallel::LinearKind::kGated ? 5
                                                                        : 6;
    std::vector<Deviation> worst(results);
    for (const parallel::Documents& documents : attention.samples) {
      const parallel::TokenLayout layout = attention.sample_layout(documents);
      const std::vector<int64_t> positions = layout.positions(sequence.rank());
      const Results truth = one_exact.run(operands, documents);
      const Results many = all_ranks.run(operands, documents, layout);
      Results one;
      if (dtype != DType::kF64) one = one_rank.run(operands, documents);
      for (size_t i = 0; i < results; ++i) {
        const double error = compare(sequence, many[i], false, truth[i], positions).worst();
        const double own =
            dtype == DType::kF64 ? 0 : compare(sequence, one[i], true, truth[i], positions).worst();
        keep_worst(worst[i], kNames[i], dtype, error, own);
      }
    }
    deviations.insert(deviations.end(), worst.begin(), worst.end());
  }
  return deviations;
}

}  // namespace longhaul::launch
