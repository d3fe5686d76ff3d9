// Cutting a part out of a piece of work.
#pragma once

#include <optional>
#include <vector>

#include "parallel/server/work.h"

namespace longhaul::parallel {

// Some heads of some queries and keys (indices of the band).
struct Cut {
  Span heads;
  IndexRange queries, keys;
};

// The part; q_len = 0 if no pair is in it.
WorkPiece part_of(const WorkPiece& piece, const Cut& cut);
// The rest, in up to six pieces.
std::vector<WorkPiece> rest_of(const WorkPiece& piece, const Cut& cut);

// Ways to cut at most `pairs` (of one head) out of a band, by rows that are multiples of a tile
// where there are as many; no range if there is none.
struct BandCut {
  IndexRange queries, keys;
};
// The last or the first queries with all their keys in `keys`.
std::optional<BandCut> last_queries(const Segment& band, IndexRange keys, double pairs,
                                    int64_t tile);
std::optional<BandCut> first_queries(const Segment& band, IndexRange keys, double pairs,
                                     int64_t tile);
// The last queries against the first keys that they see, as a rectangle with the fewest bytes:
// a query row costs as much as `ratio` key rows.
std::optional<BandCut> block(const Segment& band, double ratio, double pairs, int64_t tile);

}  // namespace longhaul::parallel
