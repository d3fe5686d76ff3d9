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
#include "launch/train/engine.h"

namespace longhaul::launch {

namespace {

constexpr double kExact = 1e-10;  // of f64

// Values of a whole sample, [token][head][dim].
struct Values {
  int64_t heads = 0, dim = 0;
  std::vector<double> data;

  const double* row(int64_t token) const {
    return data.data() + static_cast<size_t>(token * heads * dim);
  }
};

// The same on every rank, and representable in the dtype.
Values random_values(const char* name, int64_t tokens, int64_t heads, int64_t dim, DType dtype) {
  Values values{heads, dim, std::vector<double>(static_cast<size_t>(tokens * heads * dim))};
  visit_float(dtype, [&]<class T>() {
    uint64_t index = 0;
    for (double& value : values.data) {
      const RandomKey key{.seed = 1, .stream = stream_of(name)};
      value = static_cast<double>(static_cast<T>(random_normal(key, index++)));
    }
  });
  return values;
}

struct Operands {
  Values q, k, v, dout;
};
Operands random_operands(int64_t tokens, const parallel::HeadShape& h, DType dtype) {
  return {random_values("check q", tokens, h.q_heads, h.head_dim, dtype),
          random_values("check k", tokens, h.kv_heads, h.head_dim, dtype),
          random_values("check v", tokens, h.kv_heads, h.value_dim, dtype),
          random_values("check dout", tokens, h.q_heads, h.value_dim, dtype)};
}

Tensor on_device(const Context& ctx, Tensor host) {
  if (ctx.device() == kCpu) return host;
  Tensor there(host.view().dtype(), host.shape(), ctx.device());
  upload(ctx.stream, host, there);
  wait_until_idle(ctx.stream);
  return there;
}

// What a plan forgets to clear or to compute must show.
Tensor poisoned(const Context& ctx, DType dtype, const Shape& shape) {
  Tensor host(dtype, shape);
  visit_float(dtype, [&]<class T>() {
    for (T& value : host.span<T>()) value = static_cast<T>(std::nanf(""));
  });
  return on_device(ctx, std::move(host));
}

Tensor local(const Context& ctx, const Values& values, const std::vector<int64_t>& positions,
             DType dtype) {
  const Shape shape{static_cast<int64_t>(positions.size()), values.heads, values.dim};
  Tensor host(dtype, shape);
  visit_float(dtype, [&]<class T>() {
    T* to = host.view().data<T>();
    for (const int64_t position : positions) {
      const double* from = values.row(position);
      for (int64_t i = 0; i < values.heads * values.dim; ++i) *to++ = static_cast<T>(from[i]);
    }
  });
  return on_device(ctx, std::move(host));
}

// One rank's results, [row][head][dim]. The last, dsink, is a sum over all ranks; its heads, one
// number each, count as one head's row.
constexpr std::array<const char*, 6> kNames{"out", "lse", "dq", "dk", "dv", "dsink"};
constexpr size_t kSinkGradient = 5;
using Results = std::array<Values, kNames.size()>;

Values on_host(const Context& ctx, const ConstTensorView& tensor, bool heads_first) {
  const Tensor host = longhaul::on_host(ctx.stream, tensor);
  const Shape& shape = host.shape();
  const int64_t rows = shape[heads_first ? 1 : 0], heads = shape[heads_first ? 0 : 1];
  const int64_t dim = heads_first ? 1 : shape[2];
  Values values{heads, dim, std::vector<double>(static_cast<size_t>(rows * heads * dim))};
  visit_float(host.view().dtype(), [&]<class T>() {
    const T* from = host.view().data<T>();
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t d = 0; d < dim; ++d) {
          const int64_t index = heads_first ? h * rows + r : (r * heads + h) * dim + d;
          values.data[static_cast<size_t>((r * heads + h) * dim + d)] =
              static_cast<double>(from[index]);
        }
      }
    }
  });
  return values;
}

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
    return options;
  }

  std::unique_ptr<dist::Group> group_;
  Layer layer_;
};

// Squared norms by head, summed over ranks: of the difference to the truth, and of the truth.
struct Norms {
  std::vector<double> difference, truth;

  double worst() const {
    double worst = 0;
    for (size_t h = 0; h < truth.size(); ++h) {
      const double error = std::sqrt(difference[h] / (truth[h] > 0 ? truth[h] : 1.0));
      if (!(error <= worst)) worst = error;  // not a number is the worst
      if (std::isnan(worst)) break;
    }
    return worst;
  }
};

// Row r of `rows` belongs to token positions[r]; `truth` has all tokens, `other` too if `whole`.
Norms compare(dist::Group& group, const Values& other, bool whole, const Values& truth,
              const std::vector<int64_t>& positions) {
  Norms norms{std::vector<double>(static_cast<size_t>(truth.heads)),
              std::vector<double>(static_cast<size_t>(truth.heads))};
  for (size_t r = 0; r < positions.size(); ++r) {
    const double* expected = truth.row(positions[r]);
    const double* actual = other.row(whole ? positions[r] : static_cast<int64_t>(r));
    for (int64_t h = 0; h < truth.heads; ++h) {
      for (int64_t d = 0; d < truth.dim; ++d, ++expected, ++actual) {
        const double e = *expected, a = *actual;
        // Both may be -inf: the lse of a query that sees no key.
        if (e != a) norms.difference[static_cast<size_t>(h)] += (e - a) * (e - a);
        if (std::isfinite(e)) norms.truth[static_cast<size_t>(h)] += e * e;
      }
    }
  }
  Stream host;
  for (std::vector<double>* part : {&norms.difference, &norms.truth}) {
    const TensorView view(reinterpret_cast<std::byte*>(part->data()), DType::kF64, {truth.heads});
    group.all_reduce(host, view, dist::ReduceOp::kSum, "check").wait(host);
  }
  return norms;
}

}  // namespace

std::string CheckedAttention::name() const {
  const std::string& backward = options.backward_strategy;
  const bool differ = !backward.empty() && backward != options.strategy;
  return absl::StrCat(options.strategy, differ ? absl::StrCat(" (backward ", backward, ")") : "",
                      " on layout ", std::string(layout.name));
}

CheckedAttention checked_attention(const Config& config, const SettledStrategies& settled) {
  return {.layout = layout_kind(config),
          .tokens = config.data().sequence_length(),
          .options = attention_options(config, settled),
          .sinks = model_config(config).attention.sinks};
}

std::vector<Deviation> check_attention(dist::Group& sequence, const Context& ctx,
                                       const CheckedAttention& attention,
                                       std::span<const parallel::Strategy> table) {
  const ReducedProblem problem =
      reduce(attention.layout, attention.tokens, sequence.size(), attention.options);
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
    Layer all_ranks(sequence, ctx, problem.layout, options, table);
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
        Deviation d{.tensor = kNames[i], .dtype = dtype, .max_relative_error = 0, .limit = kExact};
        d.max_relative_error = compare(sequence, many[i], false, truth[i], rows).worst();
        if (dtype != DType::kF64) {
          // Where one rank happens to make no error, others may still round.
          const double rounding =
              accumulator(dtype) == DType::kF64 ? 0 : 8 * std::numeric_limits<float>::epsilon();
          const double own = compare(sequence, one[i], true, truth[i], rows).worst();
          d.limit = 2 * std::max(own, rounding);
        }
        // Of several samples, the one that comes closest to its limit.
        const bool first = worst[i].tensor.empty();
        if (first || (!worst[i].too_large() && !(d.max_relative_error / d.limit <=
                                                 worst[i].max_relative_error / worst[i].limit))) {
          worst[i] = d;
        }
      }
    }
    deviations.insert(deviations.end(), worst.begin(), worst.end());
  }
  return deviations;
}

namespace {

const Deviation& worst_of(std::span<const Deviation> deviations) {
  LONGHAUL_CHECK(!deviations.empty());
  const Deviation* worst = &deviations.front();
  for (const Deviation& d : deviations) {
    if (worst->too_large()) break;
    if (!(d.max_relative_error / d.limit <= worst->max_relative_error / worst->limit)) worst = &d;
  }
  return *worst;
}

}  // namespace

void require_small(dist::Group& world, const CheckedAttention& attention,
                   std::span<const Deviation> deviations) {
  const Deviation& worst = worst_of(deviations);
  std::optional<Error> mine;
  if (worst.too_large()) {
    mine =
        Error(ErrorCode::kNumerics,
              absl::StrFormat(
                  "check: %s of strategy %s deviates from one rank's by %.3g in %s, the limit is "
                  "%.3g: results would be wrong; use another parallel.strategy and report this",
                  worst.tensor, attention.name(), worst.max_relative_error,
                  std::string(name(worst.dtype)), worst.limit));
  }
  world.agree(mine, "check");
}

std::string summary(const CheckedAttention& attention, std::span<const Deviation> deviations) {
  const Deviation& worst = worst_of(deviations);
  return absl::StrFormat("%s equals one rank: largest deviation %.0f%% of its limit (%s in %s)",
                         attention.name(), 100 * worst.max_relative_error / worst.limit,
                         worst.tensor, std::string(name(worst.dtype)));
}

}  // namespace longhaul::launch
