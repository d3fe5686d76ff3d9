// Attention cut into tasks at random, on random servers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "parallel/plan/planners.h"

namespace longhaul::test {

// Cuts [0, total) into up to `pieces` spans.
inline std::vector<parallel::Span> random_cuts(int64_t total, int64_t pieces,
                                               std::mt19937_64& random) {
  std::set<int64_t> borders{0, total};
  for (int64_t i = 1; i < pieces; ++i) {
    borders.insert(static_cast<int64_t>(random() % static_cast<uint64_t>(total + 1)));
  }
  std::vector<parallel::Span> spans;
  for (auto it = borders.begin(); std::next(it) != borders.end(); ++it) {
    spans.push_back({*it, *std::next(it) - *it});
  }
  return spans;
}

// Every pair of ranks is cut in its own way: rows, then keys of each part, then heads of each.
inline std::vector<parallel::PlacedTask> random_tasks(const parallel::TokenLayout& layout,
                                                      const parallel::HeadShape& heads,
                                                      std::mt19937_64& random,
                                                      const std::vector<int>& servers) {
  std::vector<parallel::PlacedTask> tasks;
  for (int q_owner = 0; q_owner < layout.ranks(); ++q_owner) {
    for (int k_owner = 0; k_owner < layout.ranks(); ++k_owner) {
      if (layout.rows(q_owner) == 0 || layout.rows(k_owner) == 0) continue;
      for (parallel::Span q_rows : random_cuts(layout.rows(q_owner), 3, random)) {
        for (parallel::Span k_rows : random_cuts(layout.rows(k_owner), 3, random)) {
          for (parallel::Span q_heads : random_cuts(heads.q_heads, 3, random)) {
            tasks.push_back(
                {q_owner, q_rows, k_owner, k_rows, q_heads, servers[random() % servers.size()]});
          }
        }
      }
    }
  }
  std::shuffle(tasks.begin(), tasks.end(), random);
  return tasks;
}

inline std::vector<int> all_ranks(int ranks) {
  std::vector<int> list;
  for (int r = 0; r < ranks; ++r) list.push_back(r);
  return list;
}

}  // namespace longhaul::test
