#include "parallel/server/schedule.h"

#include <algorithm>

#include "parallel/server/work.h"

namespace longhaul::parallel {

Schedule schedule_tasks(const Problem& problem, Direction /*direction*/) {
  const std::vector<KeyList> keys = key_lists(problem.layout);
  std::vector<Piece> work = all_work(problem, keys);
  std::ranges::stable_sort(work, std::greater<>(), [](const Piece& p) { return area(p.band); });
  std::vector<int> servers = problem.servers.ranks;
  if (servers.empty()) {
    for (int r = 0; r < problem.layout.ranks(); ++r) servers.push_back(r);
  }
  std::vector<int64_t> load(servers.size(), 0);
  Schedule schedule;
  for (const Piece& piece : work) {
    const auto least = std::ranges::min_element(load);
    *least += area(piece.band);
    const int server = servers[static_cast<size_t>(least - load.begin())];
    append_tasks(piece, keys[static_cast<size_t>(piece.keys)], server, schedule.tasks);
  }
  return schedule;
}

}  // namespace longhaul::parallel
