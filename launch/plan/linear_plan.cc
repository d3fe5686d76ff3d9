#include "launch/plan/linear_plan.h"

#include "launch/plan/figures.h"
#include "launch/train/decay_report.h"
#include "launch/train/engine.h"
#include "parallel/cost/measure_linear.h"
#include "parallel/plan/decayed_scan.h"
#include "parallel/scan/runs.h"

namespace longhaul::launch {

LinearPlan plan_linear_attention(const Config& config) {
  const model::ModelConfig model = model_config(config);
  const parallel::LinearAttentionOptions options = *first_linear_attention(config);
  const int ranks = config.parallel().sequence();
  const parallel::TokenLayout layout = make_layout(config, ranks);
  LinearPlan plan{.layers = model.linear_layers(),
                  .kind = std::string(name_of(model::linear_variants(), model.linear.kind)),
                  .heads = options.heads,
                  .key_dim = options.head_dim,
                  .value_dim = options.value_dim,
                  .state_bytes = options.heads * options.head_dim * options.value_dim *
                                 size_of(accumulator(options.dtype)),
                  .relayout = parallel::has_stripes(parallel::joined_runs(layout)),
                  .sources = {},
                  .left_out = decay_report(config, layout),
                  .choice = {}};
  const parallel::Cluster cluster =
      figures(config, layout.most_rows(), std::nullopt, options, plan.sources);
  const std::vector<int> nodes =
      parallel::nodes_in_order(ranks, per_node(config, cluster, ranks, plan.sources));
  const parallel::TokenLayout runs = parallel::scanned_runs(layout, options.most_runs);
  plan.choice = parallel::choose_scan(
      {.layout = runs,
       .heads = parallel::scanned_heads(options),
       .dtype = options.dtype,
       .seconds_between_polls = config.device() == Config::CPU ? parallel::kSecondsBetweenPolls : 0,
       .forgets =
           parallel::forgetting_heads(runs, first_linear_slopes(config), options.decay_bound)},
      cluster, nodes);
  return plan;
}

}  // namespace longhaul::launch
