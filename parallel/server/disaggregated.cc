#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/digest.h"
#include "parallel/server/schedule.h"

namespace longhaul::parallel {

namespace {

// Which rows lie where, and who computes what of them.
uint64_t digest(const Problem& problem, const std::vector<PlacedTask>& tasks) {
  std::vector<int64_t> numbers;
  for (int rank = 0; rank < problem.layout.ranks(); ++rank) {
    const RunList& runs = problem.layout.runs(rank);
    numbers.push_back(static_cast<int64_t>(runs.size()));
    for (const Run& run : runs) {
      numbers.insert(numbers.end(), {run.global_begin, run.length, run.stride});
    }
  }
  for (const PlacedTask& task : tasks) {
    numbers.insert(
        numbers.end(),
        {task.q_owner, task.q_rows.begin, task.q_rows.length, task.k_owner, task.k_rows.begin,
         task.k_rows.length, task.q_heads.begin, task.q_heads.length, task.server, task.round});
  }
  return digest_of(numbers);
}

Plan plan_of(const Problem& problem, Direction direction, const Schedule& schedule, int rank,
             uint64_t digest) {
  Plan plan = plan_tasks(problem, direction, schedule.tasks, rank);
  plan.digest = digest;
  const double mean = std::accumulate(schedule.load.begin(), schedule.load.end(), 0.0) /
                      static_cast<double>(schedule.load.size());
  plan.scheduled = {
      .max_over_mean = mean > 0 ? std::ranges::max(schedule.load) / mean : 1,
      .rounds = schedule.rounds,
      .gave_way = schedule.limited_by_memory || schedule.rounds < problem.servers.nano_batches};
  return plan;
}

}  // namespace

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
  const Schedule schedule = schedule_tasks(problem, direction);
  return plan_of(problem, direction, schedule, rank, digest(problem, schedule.tasks));
}

std::vector<Plan> all_plans_disaggregated(const Problem& problem, Direction direction) {
  if (const auto why = disaggregated_refusal(problem)) fail(ErrorCode::kConfig, *why);
  const Schedule schedule = schedule_tasks(problem, direction);
  const uint64_t of_all = digest(problem, schedule.tasks);
  std::vector<Plan> plans;
  for (int rank = 0; rank < problem.layout.ranks(); ++rank) {
    plans.push_back(plan_of(problem, direction, schedule, rank, of_all));
  }
  return plans;
}

}  // namespace longhaul::parallel
