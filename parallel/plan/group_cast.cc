#include <algorithm>

#include "parallel/plan/pipeline.h"

namespace longhaul::parallel {

namespace {

// Who may see keys of whom: needs[reader][owner], by the positions of their runs alone.
std::vector<std::vector<bool>> needs_of(const Problem& problem) {
  struct Piece {
    int64_t first, last;
    int rank;
  };
  std::vector<Piece> pieces;
  for (int r = 0; r < problem.layout.ranks(); ++r) {
    for (const Run& run : problem.layout.runs(r)) {
      if (run.length > 0) pieces.push_back({run.global_begin, run.position(run.length - 1), r});
    }
  }
  const auto ranks = static_cast<size_t>(problem.layout.ranks());
  std::vector needs(ranks, std::vector<bool>(ranks, false));
  for (const Piece& q : pieces) {
    std::vector<bool>& of_reader = needs[static_cast<size_t>(q.rank)];
    const IndexRange reach = keys_in_reach(q.first, q.last, problem.documents, problem.mask);
    for (const Piece& k : pieces) {
      if (k.first < reach.end && k.last >= reach.begin)
        of_reader[static_cast<size_t>(k.rank)] = true;
    }
  }
  return needs;
}

// Rounds in which every rank reads from one other at most and is read by one other at most:
// owners[reader], -1 for none. Pair after pair, those of ranks at distance 1 first, takes the first
// round that is free on both sides. If everybody needs everybody, round i is distance i; where few
// need each other the rounds are few, at most one less than twice the most that a rank takes part
// in on one side.
std::vector<std::vector<int>> rounds_of(const Problem& problem) {
  const int ranks = problem.layout.ranks();
  const std::vector<std::vector<bool>> needs = needs_of(problem);
  std::vector<std::vector<int>> rounds;
  std::vector<std::vector<bool>> is_read;  // [round][owner]
  for (int distance = 1; distance < ranks; ++distance) {
    for (int r = 0; r < ranks; ++r) {
      const auto reader = static_cast<size_t>(r);
      const int owner = (r - distance + ranks) % ranks;
      const auto o = static_cast<size_t>(owner);
      if (!needs[reader][o]) continue;
      size_t i = 0;
      while (i < rounds.size() && (rounds[i][reader] >= 0 || is_read[i][o])) ++i;
      if (i == rounds.size()) {
        rounds.emplace_back(static_cast<size_t>(ranks), -1);
        is_read.emplace_back(static_cast<size_t>(ranks), false);
      }
      rounds[i][reader] = owner;
      is_read[i][o] = true;
    }
  }
  return rounds;
}

}  // namespace

Plan plan_group_cast(const Problem& problem, Direction direction, int rank) {
  const int ranks = problem.layout.ranks();
  // Queries of `reader`, computed by itself, against keys of `owner`.
  const auto task = [&](int reader, int owner) {
    return PlacedTask{.q_owner = reader,
                      .q_rows = {0, problem.layout.rows(reader)},
                      .k_owner = owner,
                      .k_rows = {0, problem.layout.rows(owner)},
                      .q_heads = {0, problem.heads.q_heads},
                      .server = reader};
  };
  Pipeline pipeline(problem, direction, rank);
  const int buffers = std::min(2, ranks - 1);  // used in turn
  for (int i = 0; i < buffers; ++i) pipeline.add_buffer(task(rank, rank));
  pipeline.add(0, task(rank, rank));
  int round = 0;
  for (const std::vector<int>& owners : rounds_of(problem)) {
    ++round;
    for (int reader = 0; reader < ranks; ++reader) {
      const int owner = owners[static_cast<size_t>(reader)];
      if (owner >= 0 && (reader == rank || owner == rank)) {
        pipeline.add(round, task(reader, owner), 1 + (round - 1) % buffers);
      }
    }
  }
  return pipeline.finish();
}

}  // namespace longhaul::parallel
