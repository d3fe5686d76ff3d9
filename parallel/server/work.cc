#include "parallel/server/work.h"

#include <algorithm>
#include <tuple>

namespace longhaul::parallel {

size_t KeyList::at(int64_t row) const {
  const auto after = std::upper_bound(parts.begin(), parts.end(), row,
                                      [](int64_t r, const Part& part) { return r < part.row; });
  return static_cast<size_t>(after - parts.begin()) - 1;
}

std::vector<KeyList> key_lists(const TokenLayout& layout) {
  struct Placed {
    int64_t residue;
    Run run;
    int owner;
    int64_t home_row;
  };
  int64_t stride = 1;
  for (int r = 0; r < layout.ranks(); ++r) {
    for (const Run& run : layout.runs(r)) {
      if (run.length > 1) stride = run.stride;
    }
  }
  std::vector<Placed> placed;
  for (int r = 0; r < layout.ranks(); ++r) {
    int64_t row = 0;
    for (const Run& run : layout.runs(r)) {
      if (run.length > 0) placed.push_back({run.global_begin % stride, run, r, row});
      row += run.length;
    }
  }
  std::ranges::sort(placed, {},
                    [](const Placed& p) { return std::tuple(p.residue, p.run.global_begin); });
  std::vector<KeyList> lists;
  int64_t residue = -1;
  for (const Placed& p : placed) {
    if (p.residue != residue) lists.push_back({{p.run.global_begin, 0, stride}, {}});
    residue = p.residue;
    KeyList& list = lists.back();
    list.parts.push_back({list.run.length, p.run.length, p.owner, p.home_row});
    list.run.length += p.run.length;
  }
  return lists;
}

std::vector<WorkPiece> all_work(const Problem& problem, const std::vector<KeyList>& keys) {
  std::vector<WorkPiece> pieces;
  const Span heads{0, problem.heads.q_heads};
  for (int owner = 0; owner < problem.layout.ranks(); ++owner) {
    int64_t row = 0;
    for (const Run& run : problem.layout.runs(owner)) {
      for (size_t i = 0; i < keys.size(); ++i) {
        for (const Segment& band :
             cut_segments({run}, {keys[i].run}, problem.documents, problem.mask, row)) {
          pieces.push_back({owner, static_cast<int>(i), band, heads});
        }
      }
      row += run.length;
    }
  }
  return pieces;
}

void append_tasks(const WorkPiece& piece, const KeyList& keys, int server,
                  std::vector<PlacedTask>& tasks) {
  const Segment& band = piece.band;
  const int64_t end = band.k_row + band.k_len;
  for (size_t i = keys.at(band.k_row); i < keys.parts.size() && keys.parts[i].row < end; ++i) {
    const KeyList::Part& part = keys.parts[i];
    const int64_t from = std::max(band.k_row, part.row);
    const int64_t to = std::min(end, part.row + part.length);
    tasks.push_back({.q_owner = piece.q_owner,
                     .q_rows = {band.q_row, band.q_len},
                     .k_owner = part.owner,
                     .k_rows = {part.home_row + from - part.row, to - from},
                     .q_heads = piece.heads,
                     .server = server});
  }
}

}  // namespace longhaul::parallel
