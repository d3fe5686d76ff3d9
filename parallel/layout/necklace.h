// A sample as a necklace of tokens, from which ranks take windows. Internal to parallel/layout.
//
// Windows of k tokens of a closed necklace weigh k/n of its weight on average, and neighbouring
// windows differ by two tokens. Hence some window weighs that, up to one token: cutting twice takes
// an exact share of two measures at once, tokens and attention work, whatever the documents are
// (necklace splitting: Goldberg and West 1985; Alon 1987, for any number of shares). What remains
// is closed again. Among the windows that weigh about right, the one is taken that needs the fewest
// keys of others.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "parallel/layout/load.h"

namespace longhaul::parallel {

class Necklace {
 public:
  // `cuts` ascending, from 0 to the number of tokens: where windows are tried (they begin or end at
  // a cut). mean: the area of a rank, by which keys are judged. Documents must outlive this.
  Necklace(const Documents& documents, const Mask& mask, const std::vector<int64_t>& cuts,
           double mean);

  int64_t tokens() const { return tokens_.back(); }
  int64_t area() const { return areas_.back(); }

  // Looks at all windows of so many tokens that will be tried; copies know what was seen.
  void look(int64_t rows);

  // Takes a window of `rows` tokens (0 < rows <= tokens()) whose area lies in [least, most], if one
  // of those tried does; else one whose area is not below that of an average window, and above it
  // by less than the most keys that a query sees. Runs in ascending order.
  RunList take(int64_t rows, double least, double most);

 private:
  // What is known about a window that begins (ends) with a cell.
  struct Window {
    int64_t area = -1;  // -1: not known
    double excess = 0;  // rows of others, less what its work must need anyway
  };
  // Tokens between neighbouring cuts.
  struct Cell {
    int64_t begin = 0, end = 0;
    int64_t area = 0;  // of its queries
    double due = 0;    // rows of keys that its work must need: see due_rows()
    // Keys before (after) the cell that its first (last) query sees, hence all that any sees.
    std::array<Interval, 2> before, after;
    Window beginning, ending;
    int64_t tokens() const { return end - begin; }
  };

  Cell cell(int64_t begin, int64_t end) const;
  int64_t area_of(int64_t begin, int64_t end) const;
  std::array<Interval, 2> keys_before(int64_t query) const;
  std::array<Interval, 2> keys_after(int64_t query) const;
  std::array<Interval, 2> keys_between(int64_t query, int64_t begin, int64_t end) const;

  // Coordinates count the tokens that are left, from 0; windows run past the end into the
  // beginning.
  void index();
  size_t cell_at(int64_t x) const;
  int64_t area_before(int64_t x) const;
  double due_before(int64_t x) const;
  int64_t window_area(int64_t start, int64_t rows) const;
  double window_excess(int64_t start, int64_t rows);
  int64_t start_of(size_t cell, bool ending, int64_t rows) const;
  // Calls piece(begin, end, before, after) for each range of positions of a window.
  template <class Piece>
  void visit(int64_t start, int64_t rows, const Piece& piece) const;

  int64_t crossing(int64_t rows) const;
  RunList cut_out(int64_t start, int64_t rows);

  const Documents& documents_;
  const Mask mask_;
  const RunList everything_;
  const double mean_;
  std::vector<Cell> cells_;
  std::vector<int64_t> tokens_, areas_;  // before each cell, and of all
  std::vector<double> dues_;
  std::vector<size_t> last_;  // of the cells that follow this one without a gap
  int64_t known_rows_ = 0;    // which windows are known
  std::vector<Interval> scratch_;
};

}  // namespace longhaul::parallel
