#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/server/schedule.h"

namespace longhaul::parallel {

std::optional<std::string> disaggregated_refusal(const Problem& problem) {
  const std::vector<int>& servers = problem.servers.ranks;
  if (!servers.empty() && servers.back() >= problem.layout.ranks()) {
    return absl::StrCat("strategy disaggregated has server ", servers.back(), " among ",
                        problem.layout.ranks(), " ranks; use strategy ring without servers");
  }
  return std::nullopt;
}

Plan plan_disaggregated(const Problem& problem, Direction direction, int rank) {
  if (const auto why = disaggregated_refusal(problem)) fail(ErrorCode::kConfig, *why);
  return plan_tasks(problem, direction, schedule_tasks(problem, direction).tasks, rank);
}

std::vector<Plan> all_plans_disaggregated(const Problem& problem, Direction direction) {
  if (const auto why = disaggregated_refusal(problem)) fail(ErrorCode::kConfig, *why);
  const std::vector<PlacedTask> tasks = schedule_tasks(problem, direction).tasks;
  std::vector<Plan> plans;
  for (int rank = 0; rank < problem.layout.ranks(); ++rank) {
    plans.push_back(plan_tasks(problem, direction, tasks, rank));
  }
  return plans;
}

}  // namespace longhaul::parallel
