// Rows of several ranks in one slot.
#pragma once

#include <vector>

#include "parallel/plan/plan.h"
#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

// Rows that follow each other on one rank, and where they lie in the slot.
struct Piece {
  int rank = 0;
  Span home_rows;
  Run run;
  int64_t row = 0;

  Span slot_rows() const { return {row, run.length}; }
};

// All rows of ranks [first, first + count), in order of position: runs of stride 1 that continue
// each other are one range of rows, wherever they come from. (Stripes lie rank after rank.)
std::vector<Piece> gathered(const TokenLayout& layout, int first, int count);
// The slot's rows.
RunList runs_of(const std::vector<Piece>& pieces);
int64_t rows_of(const std::vector<Piece>& pieces);

}  // namespace longhaul::parallel
