#include "parallel/layout/joint.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {

Documents side_by_side(std::span<const Documents> samples) {
  std::vector<int64_t> begins;
  int64_t first = 0;
  for (const Documents& sample : samples) {
    for (const int64_t begin : sample.begins()) begins.push_back(first + begin);
    first += sample.tokens();
  }
  return {first, std::move(begins)};
}

std::vector<Documents> samples_of(const Documents& joint, int64_t tokens) {
  LONGHAUL_CHECK(tokens > 0 && joint.tokens() % tokens == 0,
                 absl::StrCat(joint.tokens(), " tokens in samples of ", tokens));
  std::vector<Documents> samples;
  int64_t document = 0;
  for (int64_t first = 0; first < joint.tokens(); first += tokens) {
    std::vector<int64_t> begins;
    for (; document < joint.count() && joint.begin(document) < first + tokens; ++document) {
      begins.push_back(joint.begin(document) - first);
    }
    samples.emplace_back(tokens, std::move(begins));
  }
  return samples;
}

TokenLayout side_by_side(std::span<const TokenLayout> layouts, int ranks_without_rows) {
  LONGHAUL_CHECK(ranks_without_rows >= 0);
  std::vector<RunList> runs;
  int64_t first = 0;
  for (const TokenLayout& layout : layouts) {
    for (int rank = 0; rank < layout.ranks(); ++rank) {
      RunList shifted = layout.runs(rank);
      for (Run& run : shifted) run.global_begin += first;
      runs.push_back(std::move(shifted));
    }
    first += layout.tokens();
  }
  runs.resize(runs.size() + static_cast<size_t>(ranks_without_rows));
  return {first, std::move(runs)};
}

SampleLayout joint_layout(SampleLayout of_one, int64_t tokens, int ranks_of_sample) {
  return [of_one = std::move(of_one), tokens, ranks_of_sample](const Documents& joint,
                                                               const Mask& mask, int ranks) {
    std::vector<TokenLayout> layouts;
    for (const Documents& sample : samples_of(joint, tokens)) {
      layouts.push_back(of_one(sample, mask, ranks_of_sample));
    }
    const int with_rows = static_cast<int>(layouts.size()) * ranks_of_sample;
    LONGHAUL_CHECK(with_rows <= ranks, absl::StrCat(layouts.size(), " samples of ", ranks_of_sample,
                                                    " ranks on ", ranks));
    return side_by_side(layouts, ranks - with_rows);
  };
}

}  // namespace longhaul::parallel
