// What a layout makes of a sample: each rank's attention work and the keys it needs of others.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/layout/segments.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::parallel {

struct Load {
  int64_t area = 0;  // pairs (query, key) of the rank's queries
  int64_t remote_rows =
      0;  // rows of other ranks that one of its queries sees: what it must receive
  bool operator==(const Load&) const = default;
};

// Exact, for any mask. The layout's runs have stride 1. Time: pieces (run x document).
Load load_of(const TokenLayout& layout, const Documents& documents, const Mask& mask, int rank);
std::vector<Load> loads_of(const TokenLayout& layout, const Documents& documents, const Mask& mask);

// Keys as ascending, disjoint intervals of global positions.
struct Interval {
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const Interval&) const = default;
};
// The union of intervals in any order; sorts them. Empty ones are dropped.
void unite(std::vector<Interval>& intervals);
int64_t length_of(const std::vector<Interval>& disjoint);

}  // namespace longhaul::parallel
