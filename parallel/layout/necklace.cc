#include "parallel/layout/necklace.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/error.h"

namespace longhaul::parallel {

namespace {

// Rows of keys that work must need, however it is spread: a rank that does nothing but queries with
// x keys each needs these x rows for its whole area, so a query is due x rows times its share of a
// rank's area. Summed over ranks, rows of others less rows due are the price of the layout alone.
double due_rows(int64_t tokens, int64_t area, double mean) {
  if (area == 0) return 0;
  const double keys = static_cast<double>(area) / static_cast<double>(tokens);
  return keys * static_cast<double>(area) / mean;
}

}  // namespace

Necklace::Necklace(const Documents& documents, const Mask& mask, const std::vector<int64_t>& cuts,
                   double mean)
    : documents_(documents), mask_(mask), everything_{{0, documents.tokens(), 1}}, mean_(mean) {
  LONGHAUL_CHECK(!cuts.empty() && cuts.front() == 0 && cuts.back() == documents.tokens());
  for (size_t i = 0; i + 1 < cuts.size(); ++i) cells_.push_back(cell(cuts[i], cuts[i + 1]));
  index();
}

int64_t Necklace::area_of(int64_t begin, int64_t end) const {
  int64_t sum = 0;
  for (const Segment& s : cut_segments({{begin, end - begin, 1}}, everything_, documents_, mask_)) {
    sum += longhaul::area(s);
  }
  return sum;
}

std::array<Interval, 2> Necklace::keys_between(int64_t query, int64_t begin, int64_t end) const {
  std::vector<Interval> keys;
  for (const Segment& s : cut_segments({{query, 1, 1}}, everything_, documents_, mask_)) {
    keys.push_back({std::max(s.k_pos, begin), std::min(s.k_pos + s.k_len, end)});
  }
  unite(keys);
  std::array<Interval, 2> result{};
  LONGHAUL_CHECK(keys.size() <= result.size(), "a query sees at most two ranges of keys");
  std::copy(keys.begin(), keys.end(), result.begin());
  return result;
}

std::array<Interval, 2> Necklace::keys_before(int64_t query) const {
  return keys_between(query, 0, query);
}

std::array<Interval, 2> Necklace::keys_after(int64_t query) const {
  return keys_between(query, query + 1, documents_.tokens());
}

Necklace::Cell Necklace::cell(int64_t begin, int64_t end) const {
  const int64_t area = area_of(begin, end);
  return {.begin = begin,
          .end = end,
          .area = area,
          .due = due_rows(end - begin, area, mean_),
          .before = keys_before(begin),
          .after = keys_after(end - 1),
          .beginning = {},
          .ending = {}};
}

void Necklace::index() {
  tokens_.assign(1, 0);
  areas_.assign(1, 0);
  dues_.assign(1, 0);
  for (const Cell& c : cells_) {
    tokens_.push_back(tokens_.back() + c.tokens());
    areas_.push_back(areas_.back() + c.area);
    dues_.push_back(dues_.back() + c.due);
  }
  last_.resize(cells_.size());
  for (size_t i = cells_.size(); i-- > 0;) {
    const bool joined = i + 1 < cells_.size() && cells_[i].end == cells_[i + 1].begin;
    last_[i] = joined ? last_[i + 1] : i;
  }
}

size_t Necklace::cell_at(int64_t x) const {
  return static_cast<size_t>(std::upper_bound(tokens_.begin(), tokens_.end(), x) - tokens_.begin() -
                             1);
}

int64_t Necklace::area_before(int64_t x) const {
  const size_t i = cell_at(x);
  if (x == tokens_[i]) return areas_[i];
  const int64_t begin = cells_[i].begin;
  return areas_[i] + area_of(begin, begin + x - tokens_[i]);
}

double Necklace::due_before(int64_t x) const {
  const size_t i = cell_at(x);
  if (x == tokens_[i]) return dues_[i];
  const auto part = static_cast<double>(x - tokens_[i]);
  return dues_[i] + cells_[i].due * part / static_cast<double>(cells_[i].tokens());
}

int64_t Necklace::window_area(int64_t start, int64_t rows) const {
  const int64_t stop = start + rows;
  if (stop <= tokens()) return area_before(stop) - area_before(start);
  return area() - area_before(start) + area_before(stop - tokens());
}

template <class Piece>
void Necklace::visit(int64_t start, int64_t rows, const Piece& piece) const {
  for (int64_t x = start, left = rows; left > 0;) {
    const size_t first = cell_at(x), last = last_[first];
    const int64_t length = std::min(left, tokens_[last + 1] - x);
    const int64_t begin = cells_[first].begin + x - tokens_[first], end = begin + length;
    piece(begin, end, begin == cells_[first].begin ? cells_[first].before : keys_before(begin),
          end == cells_[last].end ? cells_[last].after : keys_after(end - 1));
    left -= length;
    x = (x + length) % tokens();
  }
}

double Necklace::window_excess(int64_t start, int64_t rows) {
  scratch_.clear();
  visit(start, rows,
        [&](int64_t begin, int64_t end, const std::array<Interval, 2>& before,
            const std::array<Interval, 2>& after) {
          scratch_.push_back({begin, end});
          scratch_.insert(scratch_.end(), before.begin(), before.end());
          scratch_.insert(scratch_.end(), after.begin(), after.end());
        });
  unite(scratch_);
  const int64_t stop = start + rows;
  const double due = stop <= tokens()
                         ? due_before(stop) - due_before(start)
                         : dues_.back() - due_before(start) + due_before(stop - tokens());
  return static_cast<double>(length_of(scratch_) - rows) - due;
}

int64_t Necklace::start_of(size_t cell, bool ending, int64_t rows) const {
  const int64_t start = ending ? tokens_[cell + 1] - rows : tokens_[cell];
  return start < 0 ? start + tokens() : start;
}

void Necklace::look(int64_t rows) {
  for (size_t i = 0; i < cells_.size(); ++i) {
    for (const bool ending : {false, true}) {
      Window& window = ending ? cells_[i].ending : cells_[i].beginning;
      if (rows == known_rows_ && window.area >= 0) continue;
      const int64_t start = start_of(i, ending, rows);
      window = {window_area(start, rows), window_excess(start, rows)};
    }
  }
  known_rows_ = rows;
}

RunList Necklace::take(int64_t rows, double least, double most) {
  LONGHAUL_CHECK(0 < rows && rows <= tokens());
  if (rows == tokens()) return cut_out(0, rows);
  look(rows);
  int64_t best = -1;
  double best_excess = 0;
  for (size_t i = 0; i < cells_.size(); ++i) {
    for (const bool ending : {false, true}) {
      const Window& window = ending ? cells_[i].ending : cells_[i].beginning;
      const auto area = static_cast<double>(window.area);
      if (area < least || area > most || (best >= 0 && window.excess >= best_excess)) continue;
      best = start_of(i, ending, rows);
      best_excess = window.excess;
    }
  }
  return cut_out(best >= 0 ? best : crossing(rows), rows);
}

int64_t Necklace::crossing(int64_t rows) const {
  const double average =
      static_cast<double>(area()) * static_cast<double>(rows) / static_cast<double>(tokens());
  // A window below the average and one that is not; among all windows there are both, or all are
  // equal.
  int64_t below = -1, other = -1;
  for (int64_t step = std::max<int64_t>(1, tokens() / 256);; step = (step + 1) / 2) {
    for (int64_t start = 0; start < tokens() && (below < 0 || other < 0); start += step) {
      (static_cast<double>(window_area(start, rows)) < average ? below : other) = start;
    }
    if ((below >= 0 && other >= 0) || step == 1) break;
  }
  if (other < 0) return below;  // rounding: all are equal
  if (below < 0) return other;
  while (std::abs(other - below) > 1) {
    const int64_t middle = below + (other - below) / 2;
    (static_cast<double>(window_area(middle, rows)) < average ? below : other) = middle;
  }
  return other;
}

RunList Necklace::cut_out(int64_t start, int64_t rows) {
  RunList runs;
  visit(start, rows, [&](int64_t begin, int64_t end, const auto&, const auto&) {
    runs.push_back({begin, end - begin, 1});
  });
  std::sort(runs.begin(), runs.end(),
            [](const Run& a, const Run& b) { return a.global_begin < b.global_begin; });

  const int64_t stop = start + rows, around = std::max<int64_t>(0, stop - tokens());
  std::vector<Cell> rest;
  // Keeps [from, to). Windows that do not reach over `gap` are what they were.
  const auto keep = [&](int64_t from, int64_t to) {
    for (size_t i = cell_at(from); i < cells_.size() && tokens_[i] < to; ++i) {
      const int64_t a = std::max(from, tokens_[i]), b = std::min(to, tokens_[i + 1]);
      if (a >= b) continue;
      const int64_t shift = cells_[i].begin - tokens_[i];
      rest.push_back(b - a == cells_[i].tokens() ? cells_[i] : cell(a + shift, b + shift));
    }
  };
  keep(around, start);
  const int64_t gap = around > 0 ? 0 : start;
  if (around == 0) keep(stop, tokens());
  cells_ = std::move(rest);
  index();
  const int64_t left = tokens();
  for (size_t i = 0; i < cells_.size(); ++i) {
    // Distances around the necklace to and from the gap.
    const int64_t to_gap = ((gap - tokens_[i]) % left + left) % left;
    const int64_t from_gap = ((tokens_[i + 1] - gap) % left + left) % left;
    if (to_gap > 0 && to_gap < rows) cells_[i].beginning = {};
    if (from_gap > 0 && from_gap < rows) cells_[i].ending = {};
  }
  return runs;
}

}  // namespace longhaul::parallel
