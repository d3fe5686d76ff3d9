#include "parallel/layout/load.h"

#include <algorithm>

#include "kernels/core/error.h"

namespace longhaul::parallel {

void unite(std::vector<Interval>& intervals) {
  std::erase_if(intervals, [](const Interval& i) { return i.begin >= i.end; });
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  size_t last = 0;
  for (size_t i = 1; i < intervals.size(); ++i) {
    if (intervals[i].begin <= intervals[last].end) {
      intervals[last].end = std::max(intervals[last].end, intervals[i].end);
    } else {
      intervals[++last] = intervals[i];
    }
  }
  if (!intervals.empty()) intervals.resize(last + 1);
}

int64_t length_of(const std::vector<Interval>& disjoint) {
  int64_t length = 0;
  for (const Interval& interval : disjoint) length += interval.end - interval.begin;
  return length;
}

Load load_of(const TokenLayout& layout, const Documents& documents, const Mask& mask, int rank) {
  LONGHAUL_CHECK(documents.tokens() == layout.tokens());
  const RunList everything{{0, layout.tokens(), 1}};
  Load load;
  std::vector<Interval> rows;  // seen or owned
  for (const Run& run : layout.runs(rank)) {
    if (run.length == 0) continue;
    rows.push_back({run.global_begin, run.global_begin + run.length});
    for (const Segment& s : cut_segments({run}, everything, documents, mask)) {
      load.area += area(s);
      // A trimmed band of stride 1 leaves no key unseen between its first and its last.
      rows.push_back({s.k_pos, s.k_pos + s.k_len});
    }
  }
  unite(rows);
  load.remote_rows = length_of(rows) - layout.rows(rank);
  return load;
}

std::vector<Load> loads_of(const TokenLayout& layout, const Documents& documents,
                           const Mask& mask) {
  std::vector<Load> loads;
  for (int r = 0; r < layout.ranks(); ++r) loads.push_back(load_of(layout, documents, mask, r));
  return loads;
}

}  // namespace longhaul::parallel
