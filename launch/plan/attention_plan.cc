#include "launch/plan/attention_plan.h"

#include <algorithm>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "launch/data/batch.h"
#include "launch/plan/figures.h"
#include "launch/train/engine.h"

namespace longhaul::launch {

namespace {

parallel::Documents typical_documents(const Config& config, std::vector<std::string>& sources) {
  const int64_t tokens = config.data().sequence_length();
  if (!std::filesystem::exists(config.data().path() + ".idx")) {
    sources.push_back(absl::StrCat("documents: one of all ", tokens, " tokens; there is no corpus ",
                                   config.data().path(), ".idx"));
    return parallel::Documents::whole(tokens);
  }
  const TokenFile file = TokenFile::open(config.data().path());
  const DataLoader loader(file, {0, file.tokens()}, tokens, config.data().seed());
  parallel::Documents documents = loader.load(0).documents;
  sources.push_back(absl::StrCat("documents: ", documents.count(), " in the first sample of ",
                                 config.data().path()));
  return documents;
}

std::optional<parallel::RowPrice> price_of_a_row(const Config& config, const AttentionPlan& plan,
                                                 const parallel::CoreAttentionOptions& options,
                                                 int64_t rows, const std::vector<int>& nodes) {
  if (layout_kind(config).make_for == nullptr) return std::nullopt;
  if (config.parallel().has_row_price()) {
    return parallel::RowPrice{config.parallel().row_price(), "as configured, parallel.row_price"};
  }
  return parallel::row_price(plan.cluster, options.heads, options.dtype, rows, nodes,
                             options.in_place);
}

// Pairs of the queries that the fullest rank owns, over the mean.
double area_balance(const parallel::Problem& problem) {
  double sum = 0, most = 0;
  const int ranks = problem.layout.ranks();
  for (int rank = 0; rank < ranks; ++rank) {
    double pairs = 0;
    for (int owner = 0; owner < ranks; ++owner) {
      for (const Segment& segment :
           parallel::cut_segments(problem.layout.runs(rank), problem.layout.runs(owner),
                                  problem.documents, problem.mask)) {
        pairs += static_cast<double>(area(segment));
      }
    }
    sum += pairs;
    most = std::max(most, pairs);
  }
  return sum > 0 ? most * ranks / sum : 1;
}

}  // namespace

AttentionPlan plan_attention(const Config& config) {
  AttentionPlan plan;
  plan.ranks = config.parallel().sequence();
  const parallel::CoreAttentionOptions options = attention_options(config);
  const parallel::Documents documents = typical_documents(config, plan.sources);
  const int64_t rows = make_layout(config, plan.ranks).most_rows();
  plan.documents = documents.count();
  plan.cluster = figures(config, rows, options, std::nullopt, plan.sources);
  plan.ranks_per_node = per_node(config, plan.cluster, plan.ranks, plan.sources);
  const std::vector<int> nodes = parallel::nodes_in_order(plan.ranks, plan.ranks_per_node);
  plan.row_price = price_of_a_row(config, plan, options, rows, nodes);
  const parallel::TokenLayout layout =
      make_layout(config, plan.ranks, documents, plan.row_price ? plan.row_price->pairs : 0);
  const parallel::Problem problem{.layout = layout,
                                  .documents = documents,
                                  .mask = options.mask,
                                  .heads = options.heads,
                                  .ranks_per_node = plan.ranks_per_node,
                                  .gather_heads = options.gather_heads};
  plan.balance = area_balance(problem);
  if (is_disaggregated(config)) {
    plan.sources.push_back(
        "strategy disaggregated: what replicas and servers share is not priced here, but by "
        "`longhaul bench cad`");
  }
  const auto choose = [&](parallel::Direction direction) {
    return parallel::choose(problem, direction, options.dtype, plan.cluster, nodes,
                            options.in_place);
  };
  plan.forward = choose(parallel::Direction::kForward);
  plan.backward = choose(parallel::Direction::kBackward);
  return plan;
}

}  // namespace longhaul::launch
