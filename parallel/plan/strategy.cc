#include "parallel/plan/strategy.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/error.h"
#include "parallel/plan/planners.h"

namespace longhaul::parallel {

namespace {

std::optional<std::string> does_everything(const Problem&) { return std::nullopt; }

constexpr std::array kStrategies{
    Strategy{"ring", plan_ring, does_everything},
    Strategy{"double_ring", plan_double_ring, double_ring_refusal},
    Strategy{"ulysses", plan_ulysses, does_everything},
    Strategy{"group_cast", plan_group_cast, does_everything},
    Strategy{"lightseq", plan_lightseq, lightseq_refusal},
    Strategy{"usp", plan_usp, usp_refusal},
    Strategy{"all_gather", plan_all_gather, all_gather_refusal},
    Strategy{"query_ring", plan_query_ring, does_everything},
    Strategy{"disaggregated", plan_disaggregated, disaggregated_refusal, all_plans_disaggregated,
             "which shares attention among all ranks of a job, not only those of a sample"},
};

}  // namespace

std::span<const Strategy> strategies() { return kStrategies; }

std::vector<Plan> all_plans(const Strategy& strategy, const Problem& problem, Direction direction) {
  if (strategy.all_plans != nullptr) return strategy.all_plans(problem, direction);
  std::vector<Plan> plans;
  for (int rank = 0; rank < problem.layout.ranks(); ++rank) {
    plans.push_back(strategy.plan(problem, direction, rank));
  }
  return plans;
}

const Strategy& strategy(std::string_view name, std::span<const Strategy> table) {
  std::vector<std::string> known;
  for (const Strategy& candidate : table) {
    if (candidate.name == name) return candidate;
    known.emplace_back(candidate.name);
  }
  fail(ErrorCode::kConfig, absl::StrCat("unknown strategy \"", std::string(name),
                                        "\"; choose one of ", absl::StrJoin(known, ", ")));
}

}  // namespace longhaul::parallel
