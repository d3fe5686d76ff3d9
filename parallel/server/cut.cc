#include "parallel/server/cut.h"

#include <algorithm>
#include <cmath>

namespace longhaul::parallel {

namespace {

double pairs_in(const Segment& band, IndexRange q, IndexRange k) {
  const Segment part = part_of(band, q, k);
  return part.q_len == 0 ? 0.0 : static_cast<double>(area(part));
}

// The most tiles in [1, most] for which fits(tiles), which holds up to some number of them; 0:
// none.
template <class F>
int64_t most_tiles(int64_t most, F&& fits) {
  int64_t low = 0, high = most;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (fits(middle)) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

}  // namespace

WorkPiece part_of(const WorkPiece& piece, const Cut& cut) {
  return {piece.q_owner, piece.keys, part_of(piece.band, cut.queries, cut.keys), cut.heads};
}

std::vector<WorkPiece> rest_of(const WorkPiece& piece, const Cut& cut) {
  const IndexRange all_q{0, piece.band.q_len}, all_k{0, piece.band.k_len};
  std::vector<WorkPiece> rest;
  const auto add = [&](Span heads, IndexRange q, IndexRange k) {
    if (heads.length <= 0 || q.begin >= q.end || k.begin >= k.end) return;
    const WorkPiece part = part_of(piece, {heads, q, k});
    if (part.band.q_len > 0) rest.push_back(part);
  };
  const int64_t heads_end = piece.heads.end();
  add({piece.heads.begin, cut.heads.begin - piece.heads.begin}, all_q, all_k);
  add({cut.heads.end(), heads_end - cut.heads.end()}, all_q, all_k);
  add(cut.heads, {0, cut.queries.begin}, all_k);
  add(cut.heads, {cut.queries.end, all_q.end}, all_k);
  add(cut.heads, cut.queries, {0, cut.keys.begin});
  add(cut.heads, cut.queries, {cut.keys.end, all_k.end});
  return rest;
}

std::optional<BandCut> last_queries(const Segment& band, IndexRange keys, double pairs,
                                    int64_t tile) {
  const auto range = [&](int64_t tiles) {
    return IndexRange{std::max<int64_t>(0, band.q_len - tiles * tile), band.q_len};
  };
  const int64_t most = (band.q_len + tile - 1) / tile;
  const int64_t tiles =
      most_tiles(most, [&](int64_t n) { return pairs_in(band, range(n), keys) <= pairs; });
  if (tiles == 0) return std::nullopt;
  return BandCut{range(tiles), keys};
}

std::optional<BandCut> first_queries(const Segment& band, IndexRange keys, double pairs,
                                     int64_t tile) {
  const auto range = [&](int64_t tiles) {
    return IndexRange{0, std::min(band.q_len, tiles * tile)};
  };
  const int64_t most = (band.q_len + tile - 1) / tile;
  const int64_t tiles =
      most_tiles(most, [&](int64_t n) { return pairs_in(band, range(n), keys) <= pairs; });
  if (tiles == 0) return std::nullopt;
  return BandCut{range(tiles), keys};
}

std::optional<BandCut> block(const Segment& band, double ratio, double pairs, int64_t tile) {
  // x queries and y keys with x y = pairs take the fewest bytes where ratio x = y.
  const auto tiles = [tile](double rows) {
    return std::max(tile, static_cast<int64_t>(rows) / tile * tile);
  };
  const int64_t x = std::min(band.q_len, tiles(std::sqrt(pairs / ratio)));
  const IndexRange queries{band.q_len - x, band.q_len};
  const IndexRange seen = keys_seen(band, queries.begin, queries.end);
  const int64_t y = std::min(seen.end - seen.begin, tiles(pairs / static_cast<double>(x)));
  const IndexRange keys{seen.begin, seen.begin + y};
  if (y <= 0 || pairs_in(band, queries, keys) > pairs) return std::nullopt;
  return BandCut{queries, keys};
}

}  // namespace longhaul::parallel
