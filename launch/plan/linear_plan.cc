#include "launch/plan/linear_plan.h"

#include <algorithm>

#include "dist/null/null.h"
#include "launch/train/engine.h"
#include "parallel/plan/chain.h"
#include "parallel/plan/scan.h"

namespace longhaul::launch {

namespace {

parallel::HeadShape shape_of(const parallel::LinearAttentionOptions& options) {
  parallel::HeadShape heads{.q_heads = options.heads,
                            .kv_heads = options.heads,
                            .head_dim = options.head_dim,
                            .value_dim = options.value_dim};
  if (options.kind == parallel::LinearKind::kGated) {
    heads.state_decay = kernels::StateDecay::kDiagonal;
  }
  if (options.kind == parallel::LinearKind::kDeltaRule) {
    heads.state_decay = kernels::StateDecay::kDense;
  }
  return heads;
}

// The plans that LinearAttention makes for a sample of one document.
LinearCandidate candidate(const parallel::LinearAttentionOptions& options,
                          const parallel::TokenLayout& layout, parallel::Direction direction) {
  LinearCandidate result{.method = options.method};
  double sum = 0;
  std::vector<parallel::Plan> plans;
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    const auto group = dist::null_group(rank, layout.ranks());
    parallel::LinearAttention attention(*group, layout, options);
    attention.prepare(parallel::Documents::whole(layout.tokens()), layout);
    const parallel::Plan& plan = attention.plan(direction);
    const int64_t received = received_bytes(plan, rank, shape_of(options), options.dtype);
    sum += static_cast<double>(received);
    result.received_max = std::max(result.received_max, received);
    plans.push_back(plan);
  }
  result.chain = parallel::longest_chain(plans);
  result.received_mean = sum / layout.ranks();
  return result;
}

bool has_stripes(const parallel::TokenLayout& layout) {
  for (int rank = 0; rank < layout.ranks(); ++rank) {
    for (const parallel::Run& run : layout.runs(rank)) {
      if (run.length > 1 && run.stride > 1) return true;
    }
  }
  return false;
}

}  // namespace

LinearPlan plan_linear_attention(const Config& config) {
  const model::ModelConfig model = model_config(config);
  int64_t layer = 0;
  while (!model.is_linear(layer)) ++layer;
  parallel::LinearAttentionOptions options =
      model::linear_attention_options(model, dtype(config), model.linear_key_dim(layer));
  options.most_runs = linear_options(config).most_runs;
  const parallel::TokenLayout layout = make_layout(config, config.parallel().sequence());
  LinearPlan plan{.layers = model.linear_layers(),
                  .kind = std::string(name_of(model::linear_variants(), model.linear.kind)),
                  .heads = options.heads,
                  .key_dim = options.head_dim,
                  .value_dim = options.value_dim,
                  .state_bytes = options.heads * options.head_dim * options.value_dim *
                                 size_of(accumulator(options.dtype)),
                  .relayout = has_stripes(layout),
                  .forward = {},
                  .backward = {}};
  for (const parallel::ScanMethod& method : parallel::scan_methods()) {
    options.method = method.name;
    plan.forward.push_back(candidate(options, layout, parallel::Direction::kForward));
    plan.backward.push_back(candidate(options, layout, parallel::Direction::kBackward));
  }
  return plan;
}

}  // namespace longhaul::launch
