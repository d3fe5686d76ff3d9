#include "parallel/cost/choose.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {

namespace {

std::string milliseconds(double seconds) { return absl::StrFormat("%.3g ms", 1e3 * seconds); }

// "3/4 of its bytes", "1.8 times its bytes"
std::string share_of_bytes(double mine, double other) {
  if (other == 0) return mine == 0 ? "as few bytes" : "more bytes";
  const double share = mine / other;
  for (int denominator = 1; denominator <= 8; ++denominator) {
    const double numerator = share * denominator;
    const double whole = std::round(numerator);
    if (whole < 1 || std::abs(numerator - whole) > 0.01 * denominator) continue;
    if (denominator == 1) {
      return whole == 1 ? "as many bytes" : absl::StrFormat("%.0f times its bytes", whole);
    }
    if (share < 1) return absl::StrFormat("%.0f/%d of its bytes", whole, denominator);
  }
  return share < 1 ? absl::StrFormat("%.0f%% of its bytes", 100 * share)
                   : absl::StrFormat("%.2f times its bytes", share);
}

}  // namespace

std::string reason(const std::vector<Candidate>& candidates) {
  const Candidate& first = candidates[0];
  if (candidates.size() < 2 || candidates[1].refused()) {
    return absl::StrCat(first.strategy, " is the only strategy that does not refuse");
  }
  // Several strategies may make the same plan: the first that differs says more.
  const auto slower = std::find_if(candidates.begin() + 1, candidates.end(), [&](const auto& c) {
    return !c.refused() && c.seconds > first.seconds * (1 + 1e-9);
  });
  if (slower == candidates.end()) {
    return absl::StrCat(first.strategy, " takes as long as ", candidates[1].strategy,
                        " and stands before it in the table");
  }
  const Candidate& second = *slower;
  const double gain = second.seconds - first.seconds;
  std::vector<std::string> parts;
  const double exposes_less = second.exposed - first.exposed;
  if (std::abs(exposes_less) > 0.05 * gain) {
    parts.push_back(absl::StrCat("exposes ", milliseconds(std::abs(exposes_less)),
                                 exposes_less > 0 ? " less" : " more"));
  }
  if (std::abs(second.balance - first.balance) > 0.005) {
    parts.push_back(absl::StrFormat("its fullest rank computes %.2f instead of %.2f of the mean",
                                    first.balance, second.balance));
  }
  parts.push_back(
      absl::StrCat("receives ", share_of_bytes(first.received_mean, second.received_mean)));
  return absl::StrCat(first.strategy, " is ", milliseconds(gain), " faster than ", second.strategy,
                      ": ", absl::StrJoin(parts, ", "));
}

std::vector<int> nodes_in_order(int ranks, int per_node) {
  LONGHAUL_CHECK(per_node >= 1);
  std::vector<int> node_of(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) node_of[static_cast<size_t>(rank)] = rank / per_node;
  return node_of;
}

namespace {

// What one rank's plan tells.
Candidate planned(const Strategy& strategy, const Problem& problem, Direction direction) {
  Candidate candidate;
  candidate.strategy = strategy.name;
  if (const auto why = strategy.refusal(problem)) {
    candidate.refusal = *why;
    return candidate;
  }
  const auto begin = std::chrono::steady_clock::now();
  const Plan plan = strategy.plan(problem, direction, 0);
  candidate.planning =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  for (const Step& step : plan.steps) {
    for (const Task& task : step.tasks) {
      candidate.bands += static_cast<int64_t>(task.segments.size());
    }
  }
  return candidate;
}

Candidate passed_over(const Strategy& strategy) {
  Candidate candidate;
  candidate.strategy = strategy.name;
  candidate.refusal =
      absl::StrCat("auto passes over ", candidate.strategy, ", ",
                   std::string(strategy.only_by_name), "; name it in parallel.strategy to have it");
  return candidate;
}

void simulate_all(const Strategy& strategy, const Problem& problem, Direction direction,
                  DType dtype, const Cluster& cluster, const std::vector<int>& node_of,
                  bool in_place, Candidate& candidate) {
  const std::vector<Plan> plans = all_plans(strategy, problem, direction);
  for (const Plan& plan : plans) {
    candidate.steps = std::max(candidate.steps, static_cast<int>(plan.steps.size()));
  }
  const std::vector<RankTime> times = simulate(plans, cluster,
                                               {.direction = direction,
                                                .heads = problem.heads,
                                                .dtype = dtype,
                                                .node_of = node_of,
                                                .in_place = in_place});
  const auto count = static_cast<double>(times.size());
  double pairs = 0, most_pairs = 0;
  for (const RankTime& time : times) {
    candidate.seconds = std::max(candidate.seconds, time.seconds);
    candidate.exposed += time.exposed() / count;
    candidate.received_mean += static_cast<double>(time.received_bytes) / count;
    candidate.received_max = std::max(candidate.received_max, time.received_bytes);
    candidate.in_place_mean += static_cast<double>(time.in_place_bytes) / count;
    pairs += time.pairs / count;
    most_pairs = std::max(most_pairs, time.pairs);
  }
  if (pairs > 0) candidate.balance = most_pairs / pairs;
}

void pass_over_many_bands(std::vector<Candidate>& candidates) {
  int64_t fewest = std::numeric_limits<int64_t>::max();
  for (const Candidate& c : candidates) {
    if (!c.refused()) fewest = std::min(fewest, c.bands);
  }
  for (Candidate& c : candidates) {
    if (c.refused() || c.bands <= std::max(kMostBands, kTimesFewestBands * fewest)) continue;
    c.refusal = absl::StrCat(
        "auto passes over ", c.strategy, ", which cuts the mask of this sample into ", c.bands,
        " bands for one rank, more than ", kMostBands, " and than ", kTimesFewestBands,
        " times the ", fewest, " that do; use a layout without stripes for packed samples");
  }
}

}  // namespace

Candidate predict(const Strategy& strategy, const Problem& problem, Direction direction,
                  DType dtype, const Cluster& cluster, const std::vector<int>& node_of,
                  bool in_place) {
  Candidate candidate = planned(strategy, problem, direction);
  if (!candidate.refused()) {
    simulate_all(strategy, problem, direction, dtype, cluster, node_of, in_place, candidate);
  }
  return candidate;
}

Choice choose(const Problem& problem, Direction direction, DType dtype, const Cluster& cluster,
              const std::vector<int>& node_of, bool in_place) {
  Choice choice{.direction = direction, .candidates = {}, .why = {}};
  for (const Strategy& strategy : strategies()) {
    if (strategy.only_by_name.empty()) {
      choice.candidates.push_back(planned(strategy, problem, direction));
    } else {
      choice.candidates.push_back(passed_over(strategy));
    }
  }
  pass_over_many_bands(choice.candidates);
  std::vector<std::string> refusals;
  for (size_t i = 0; i < choice.candidates.size(); ++i) {
    Candidate& candidate = choice.candidates[i];
    if (candidate.refused()) {
      refusals.push_back(candidate.refusal);
    } else {
      simulate_all(strategies()[i], problem, direction, dtype, cluster, node_of, in_place,
                   candidate);
    }
  }
  std::ranges::stable_sort(choice.candidates, {}, [](const Candidate& candidate) {
    return std::pair(candidate.refused(), candidate.seconds);
  });
  if (choice.winner().refused()) {
    fail(ErrorCode::kConfig, absl::StrCat("strategy \"auto\": every strategy refuses: ",
                                          absl::StrJoin(refusals, "; ")));
  }
  choice.why = reason(choice.candidates);
  return choice;
}

}  // namespace longhaul::parallel
