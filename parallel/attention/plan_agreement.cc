#include "parallel/attention/plan_agreement.h"

#include <algorithm>
#include <bit>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace longhaul::parallel {

namespace {

// "rank 3", "ranks 0-2, 5"
std::string listed(const std::vector<int>& ranks) {
  std::vector<std::string> ranges;
  for (size_t begin = 0, end = 0; begin < ranks.size(); begin = end) {
    for (end = begin + 1; end < ranks.size() && ranks[end] == ranks[end - 1] + 1;) ++end;
    ranges.push_back(end - begin == 1 ? absl::StrCat(ranks[begin])
                                      : absl::StrCat(ranks[begin], "-", ranks[end - 1]));
  }
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranges, ", "));
}

// The ranks of each digest.
std::vector<std::vector<int>> alike(const dist::Group& group, const std::vector<int64_t>& digests) {
  std::vector<int64_t> known;
  std::vector<std::vector<int>> ranks;
  for (size_t rank = 0; rank < digests.size(); ++rank) {
    const auto which = static_cast<size_t>(std::ranges::find(known, digests[rank]) - known.begin());
    if (which == known.size()) {
      known.push_back(digests[rank]);
      ranks.emplace_back();
    }
    ranks[which].push_back(group.world_rank(static_cast<int>(rank)));
  }
  return ranks;
}

Error not_alike(const std::vector<std::vector<int>>& ranks) {
  constexpr size_t kMostListed = 4;
  std::vector<std::string> parts;
  for (size_t i = 0; i < std::min(ranks.size(), kMostListed); ++i) {
    parts.push_back(listed(ranks[i]));
  }
  const std::string others = ranks.size() > kMostListed
                                 ? absl::StrCat(" and ", ranks.size() - kMostListed, " other ways")
                                 : "";
  return {ErrorCode::kEnvironment,
          absl::StrCat("ranks planned the same attention in ", ranks.size(),
                       " ways: ", absl::StrJoin(parts, "; "), others,
                       "; their messages would not match. All nodes need one build, configuration, "
                       "C library and type of CPU; or set no parallel.cluster, whose costs take "
                       "logarithms that C libraries and CPUs round differently")};
}

}  // namespace

void agree_on_plans(dist::Group& group, const std::optional<Error>& error, uint64_t digest) {
  const Tensor send(DType::kI64, {2}), all(DType::kI64, {group.size(), 2});
  send.span<int64_t>()[0] = error ? 1 : 0;
  send.span<int64_t>()[1] = std::bit_cast<int64_t>(digest);
  Stream host;
  group.all_gather(host, send, all, "plans' digests").wait(host);
  bool failed = false;
  std::vector<int64_t> digests;
  for (size_t rank = 0; rank < static_cast<size_t>(group.size()); ++rank) {
    failed = failed || all.span<int64_t>()[2 * rank] != 0;
    digests.push_back(all.span<int64_t>()[2 * rank + 1]);
  }
  if (failed) group.agree(error, "planning");
  if (const auto ranks = alike(group, digests); ranks.size() > 1) {
    group.agree(not_alike(ranks), "planning");
  }
}

}  // namespace longhaul::parallel
