#include "parallel/server/start.h"

#include <algorithm>

#include "parallel/server/cut.h"

namespace longhaul::parallel {

namespace {

// The first rows of the work to one server, the rest in turn to the next.
void place_rows(const Work& work, int64_t first_row, int64_t all_rows, Placement& placement) {
  const Segment& band = work.piece.band;
  const int64_t servers = placement.servers();
  for (int64_t row = 0; row < band.q_len;) {
    const int64_t at = first_row + band.q_row + row;
    const int64_t server = at * servers / all_rows;
    const int64_t next = ((server + 1) * all_rows + servers - 1) / servers;  // its first row
    const int64_t end = std::min(band.q_len, row + next - at);
    const WorkPiece part = part_of(work.piece, {work.piece.heads, {row, end}, {0, band.k_len}});
    if (part.band.q_len > 0) placement.place({part, work.rate}, static_cast<int>(server));
    row = end;
  }
}

}  // namespace

void place(const Problem& problem, Start start, Placement& placement) {
  const std::vector<Work> all = placement.all();
  const int ranks = problem.layout.ranks();
  const auto dedicated = [&](const Work& work) {
    return placement.server_of(work.piece.q_owner) < 0;
  };
  for (const Work& work : all) {
    if (!dedicated(work)) placement.place(work, placement.server_of(work.piece.q_owner));
  }
  if (start == Start::kByRows) {
    std::vector<int64_t> first(static_cast<size_t>(ranks), 0);
    int64_t rows = 0;
    for (int r = 0; r < ranks; ++r) {
      first[static_cast<size_t>(r)] = rows;
      if (placement.server_of(r) < 0) rows += problem.layout.rows(r);
    }
    for (const Work& work : all) {
      if (dedicated(work)) {
        place_rows(work, first[static_cast<size_t>(work.piece.q_owner)], rows, placement);
      }
    }
    return;
  }
  // Each server is filled up to the mean; what is placed already counts.
  double total = 0;
  for (const Work& work : all) total += work.cost();
  const double mean = total / placement.servers();
  int server = 0;
  for (Work work : all) {
    if (!dedicated(work)) continue;
    while (true) {
      const bool last = server + 1 >= placement.servers();
      const double room = mean - placement.load(server);
      if (last || work.cost() <= room) {
        placement.place(work, server);
        break;
      }
      const Segment& band = work.piece.band;
      const double pairs = room / (work.rate * static_cast<double>(work.piece.heads.length));
      const auto cut = room <= 0
                           ? std::nullopt
                           : first_queries(band, {0, band.k_len}, pairs, problem.servers.tile);
      ++server;
      if (!cut) continue;
      const Cut part{work.piece.heads, cut->queries, cut->keys};
      const WorkPiece first = part_of(work.piece, part);
      if (first.band.q_len > 0) placement.place({first, work.rate}, server - 1);
      work.piece = rest_of(work.piece, part).front();
    }
  }
}

}  // namespace longhaul::parallel
