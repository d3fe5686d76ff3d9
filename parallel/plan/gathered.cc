#include "parallel/plan/gathered.h"

#include <algorithm>

namespace longhaul::parallel {

namespace {

// Whether b's rows can travel with a's.
bool continues(const Piece& a, const Piece& b) {
  return a.rank == b.rank && a.home_rows.end() == b.home_rows.begin &&
         a.run.stride == b.run.stride && a.run.position(a.run.length) == b.run.global_begin;
}

}  // namespace

std::vector<Piece> gathered(const TokenLayout& layout, int first, int count) {
  std::vector<Piece> runs;
  for (int r = first; r < first + count; ++r) {
    int64_t row = 0;
    for (const Run& run : layout.runs(r)) {
      if (run.length > 0) runs.push_back({r, {row, run.length}, run});
      row += run.length;
    }
  }
  std::sort(runs.begin(), runs.end(),
            [](const Piece& a, const Piece& b) { return a.run.global_begin < b.run.global_begin; });
  std::vector<Piece> pieces;
  int64_t row = 0;
  for (Piece piece : runs) {
    piece.row = row;
    row += piece.run.length;
    if (!pieces.empty() && continues(pieces.back(), piece)) {
      pieces.back().home_rows.length += piece.run.length;
      pieces.back().run.length += piece.run.length;
    } else {
      pieces.push_back(piece);
    }
  }
  return pieces;
}

RunList runs_of(const std::vector<Piece>& pieces) {
  RunList runs;
  for (const Piece& piece : pieces) runs.push_back(piece.run);
  return runs;
}

int64_t rows_of(const std::vector<Piece>& pieces) {
  return pieces.empty() ? 0 : pieces.back().slot_rows().end();
}

}  // namespace longhaul::parallel
