#include "parallel/cost/choose_scan.h"

#include <algorithm>
#include <utility>

#include "kernels/core/error.h"
#include "parallel/plan/chain.h"
#include "parallel/plan/decayed_scan.h"

namespace longhaul::parallel {

namespace {

Candidate predict(const ScanMethod& method, const ScanProblem& problem, Direction direction,
                  const Cluster& cluster, const std::vector<int>& node_of) {
  Candidate candidate;
  candidate.strategy = method.name;
  std::vector<Plan> plans;
  for (int rank = 0; rank < problem.layout.ranks(); ++rank) {
    plans.push_back(plan_scan(method, problem.layout, problem.heads.kv_heads, problem.forgets,
                              direction, rank));
  }
  const int64_t chain = longest_chain(plans);
  candidate.steps = static_cast<int>(chain);
  const LinearProfile* profile = cluster.linear_profile(problem.dtype, problem.heads);
  LONGHAUL_CHECK(profile != nullptr, "a profile of the kernels is there");
  const std::vector<RankTime> times = simulate(plans, cluster,
                                               {.direction = direction,
                                                .heads = problem.heads,
                                                .dtype = problem.dtype,
                                                .node_of = node_of,
                                                .in_place = false});
  // Messages come in while a kernel computes: each of a chain then waits half of the time between
  // two polls, on average.
  const double delays = 0.5 * problem.seconds_between_polls * static_cast<double>(chain);
  const auto count = static_cast<double>(times.size());
  for (size_t rank = 0; rank < times.size(); ++rank) {
    const RankTime& time = times[rank];
    const auto tokens =
        static_cast<double>(problem.layout.rows(static_cast<int>(rank)) * problem.heads.kv_heads);
    const double computing = tokens * profile->seconds_per_token(direction);
    const bool hides = problem.heads.state_decay != kernels::StateDecay::kDense;
    const double seconds =
        hides ? std::max(time.seconds + std::min(computing, delays), computing + time.copying)
              : computing + time.seconds;
    candidate.seconds = std::max(candidate.seconds, seconds);
    candidate.exposed += (seconds - computing) / count;
    candidate.received_mean += static_cast<double>(time.received_bytes) / count;
    candidate.received_max = std::max(candidate.received_max, time.received_bytes);
  }
  return candidate;
}

Candidate sum_of(const Candidate& forward, const Candidate& backward) {
  Candidate sum = forward;
  sum.seconds += backward.seconds;
  sum.exposed += backward.exposed;
  sum.received_mean += backward.received_mean;
  sum.received_max += backward.received_max;
  sum.steps = std::max(forward.steps, backward.steps);
  return sum;
}

}  // namespace

ScanChoice choose_scan(const ScanProblem& problem, const Cluster& cluster,
                       const std::vector<int>& node_of) {
  ScanChoice choice;
  for (const ScanMethod& method : scan_methods()) {
    Candidate forward = predict(method, problem, Direction::kForward, cluster, node_of);
    Candidate backward = predict(method, problem, Direction::kBackward, cluster, node_of);
    choice.both.candidates.push_back(sum_of(forward, backward));
    choice.directions[0].push_back(std::move(forward));
    choice.directions[1].push_back(std::move(backward));
  }
  std::ranges::stable_sort(choice.both.candidates, {}, &Candidate::seconds);
  choice.both.why = reason(choice.both.candidates);
  return choice;
}

}  // namespace longhaul::parallel
