#include <algorithm>
#include <optional>

#include "parallel/server/cut.h"
#include "parallel/server/schedule_of.h"
#include "parallel/server/start.h"

namespace longhaul::parallel {

Schedule schedule_of(const Problem& problem, Direction direction, const Placement& placement) {
  Placement settled(problem, direction);
  Schedule schedule{.tasks = placement.tasks(), .load = {}, .memory = {}, .bytes = {}};
  for (int s = 0; s < placement.servers(); ++s) {
    for (const Work& work : placement.work(s)) settled.place(work, s);
    schedule.load.push_back(settled.load(s));
    schedule.bytes.push_back(settled.bytes(s));
  }
  for (int r = 0; r < problem.layout.ranks(); ++r) {  // both are upper bounds
    schedule.memory.push_back(std::min(settled.memory(r), placement.memory(r)));
  }
  return schedule;
}

namespace {

struct Choice {
  int from = 0;
  size_t index = 0;
  double amount = 0, score = 0;
};

}  // namespace

Schedule published_greedy(const Problem& problem, Direction direction) {
  Placement placement(problem, direction);
  place(problem, Start::kByWork, placement);
  double mean = 0;
  for (int s = 0; s < placement.servers(); ++s) mean += placement.load(s) / placement.servers();

  std::vector<int> targets;
  for (int s = 0; s < placement.servers(); ++s) {
    if (placement.load(s) < mean) targets.push_back(s);
  }
  std::ranges::stable_sort(targets, {}, [&](int s) { return placement.load(s); });
  int64_t moves = 0;
  for (const int to : targets) {
    while (mean - placement.load(to) > problem.servers.imbalance * mean) {
      std::optional<Choice> best;
      for (int from = 0; from < placement.servers(); ++from) {
        const double surplus = placement.load(from) - mean;
        if (surplus <= 0) continue;
        for (size_t i = 0; i < placement.work(from).size(); ++i) {
          const Work& work = placement.work(from)[i];
          const double cost = work.cost();
          const double amount = std::min({cost, surplus, mean - placement.load(to)});
          // Without a cut: the share of the queries, and all keys.
          const Segment& band = work.piece.band;
          const double kv_heads = static_cast<double>(work.piece.heads.length) /
                                  static_cast<double>(problem.heads.group());
          const double bytes =
              kv_heads *
              (amount / cost * static_cast<double>(band.q_len * placement.query_bytes()) +
               static_cast<double>(band.k_len * placement.key_bytes()));
          const double score = amount / bytes;
          if (!best || score > best->score) best = Choice{from, i, amount, score};
        }
      }
      if (!best) break;
      const Work work = placement.take(best->from, best->index);
      const Segment& band = work.piece.band;
      Cut cut{work.piece.heads, {0, band.q_len}, {0, band.k_len}};
      if (best->amount < work.cost()) {
        // At least a tile, or one query after the other would go.
        const double pairs =
            best->amount / (work.rate * static_cast<double>(work.piece.heads.length));
        const auto last = last_queries(band, cut.keys, pairs, problem.servers.tile);
        cut.queries =
            last ? last->queries
                 : IndexRange{std::max<int64_t>(0, band.q_len - problem.servers.tile), band.q_len};
      }
      placement.place({part_of(work.piece, cut), work.rate}, to);
      for (const WorkPiece& rest : rest_of(work.piece, cut)) {
        placement.place({rest, work.rate}, best->from);
      }
      ++moves;
    }
  }
  Schedule schedule = schedule_of(problem, direction, placement);
  schedule.moves = moves;
  return schedule;
}

}  // namespace longhaul::parallel
