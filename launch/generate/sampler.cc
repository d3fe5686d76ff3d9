#include "launch/generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "kernels/core/random.h"

namespace longhaul::launch {

void check(const SamplerOptions& options) {
  if (!std::isfinite(options.temperature) || options.temperature < 0) {
    fail(ErrorCode::kConfig, absl::StrCat("--temperature ", options.temperature,
                                          " is not a number of 0 or more; 0 is greedy"));
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    fail(ErrorCode::kConfig,
         absl::StrCat("--top-p ", options.top_p, " is not above 0 and at most 1; 1 is all tokens"));
  }
}

int32_t choose(const SamplerOptions& options, std::span<const double> logits, uint64_t index) {
  LONGHAUL_CHECK(!logits.empty());
  const auto bad = std::ranges::find_if(logits, [](double x) { return !std::isfinite(x); });
  if (bad != logits.end()) {
    fail(ErrorCode::kNumerics,
         absl::StrCat("the logit of token ", bad - logits.begin(), " is ", *bad,
                      "; the weights or activations overflow: try --set train.dtype=F32"));
  }
  const auto likeliest = std::ranges::max_element(logits);  // the first of equals
  if (options.temperature == 0) return static_cast<int32_t>(likeliest - logits.begin());

  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const auto logit = [&](int32_t token) { return logits[static_cast<size_t>(token)]; };
  std::ranges::stable_sort(order, std::greater<>(), logit);
  std::vector<double> weights;
  for (const int32_t token : order) {
    weights.push_back(std::exp((logit(token) - *likeliest) / options.temperature));
  }
  const double total = std::accumulate(weights.begin(), weights.end(), 0.0);
  double nucleus = 0;
  size_t kept = 0;
  while (kept < weights.size() && (kept == 0 || nucleus < options.top_p * total)) {
    nucleus += weights[kept++];
  }
  const RandomKey key{.seed = options.seed, .stream = stream_of("next token")};
  double left = random_uniform(key, index) * nucleus;
  for (size_t i = 0; i < kept; ++i) {
    if (left < weights[i]) return order[i];
    left -= weights[i];
  }
  return order[kept - 1];  // where rounding has left a little
}

}  // namespace longhaul::launch
