#include "launch/train/decay_report.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/train/engine.h"
#include "parallel/plan/decayed_scan.h"
#include "parallel/scan/runs.h"

namespace longhaul::launch {

namespace {

std::string left_out(const parallel::DecayError& error, size_t heads) {
  if (error.heads == 0) return "exact, no head forgets over every run of tokens";
  return absl::StrFormat(
      "%d of %d heads take states from the neighbouring run only; a state lacks at most %.2g of "
      "the "
      "norm of the one before, an output or gradient %.2g x the largest norms of what is "
      "multiplied (q, k, v, dout)",
      error.heads, heads, error.of_state, error.of_output);
}

}  // namespace

std::vector<std::string> decay_report(const Config& config, const parallel::TokenLayout& layout) {
  const double bound = config.parallel().linear_decay_bound();
  const model::ModelConfig model = model_config(config);
  std::vector<std::string> lines;
  if (bound == 0 || model.linear_layers() == 0) return lines;
  const parallel::TokenLayout runs =
      parallel::scanned_runs(layout, first_linear_attention(config)->most_runs);
  std::vector<std::pair<std::string, std::string>> groups;  // layers, what they leave out
  for (int64_t layer = 0; layer < model.layers; ++layer) {
    if (!model.is_linear(layer)) continue;
    const std::vector<double> slopes = slopes_of_layer(config, layer);
    if (slopes.empty()) return lines;
    const std::string what = left_out(parallel::decay_error(runs, slopes, bound), slopes.size());
    if (!groups.empty() && groups.back().second == what) {
      absl::StrAppend(&groups.back().first, ",", layer);
    } else {
      groups.emplace_back(absl::StrCat(layer), what);
    }
  }
  for (const auto& [layers, what] : groups) {
    lines.push_back(absl::StrCat("linear_decay_bound ", bound, ", layers ", layers, ": ", what));
  }
  return lines;
}

}  // namespace longhaul::launch
