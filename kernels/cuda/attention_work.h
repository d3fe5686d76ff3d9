// Segments as lists of work for blocks of threads: tiles of rows, each with the segments that have
// anything for them, in list order. A row belongs to one tile, and a tile of one head to one block:
// so whatever is summed up for a row is summed up by one block, in a fixed order.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "kernels/core/context.h"
#include "kernels/segment.h"

namespace longhaul::kernels::cuda {

// Rows [begin, end) of a tensor, and visits [first, last): indices of segments.
struct AttentionTile {
  int64_t begin = 0, end = 0;
  int64_t first = 0, last = 0;
};

struct AttentionWorkList {
  std::vector<Segment> segments;
  std::vector<AttentionTile> tiles;  // that have visits, the heaviest first
  std::vector<int64_t> visits;
};

// Tiles of `tile_rows` of `rows` query rows with the segments in which they see keys; of key rows
// with the segments in which they are seen.
AttentionWorkList query_tiles(std::span<const Segment>, int64_t rows, int64_t tile_rows);
AttentionWorkList key_tiles(std::span<const Segment>, int64_t rows, int64_t tile_rows);

// A list in the device's memory.
struct AttentionWork {
  const Segment* segments = nullptr;
  const AttentionTile* tiles = nullptr;
  const int64_t* visits = nullptr;
  int64_t count = 0;  // of tiles
};

// Calls launch(work) for the lists of as many segments at a time as fit into scratch whose size
// depends on the rows alone: samples differ in their documents, and memory was measured before.
// Nothing is called while measuring.
using MakeTiles = AttentionWorkList (*)(std::span<const Segment>, int64_t rows, int64_t tile_rows);
void for_work(const Context&, MakeTiles make, std::span<const Segment>, int64_t rows,
              int64_t tile_rows, const std::function<void(const AttentionWork&)>& launch);

inline constexpr int64_t kMostSegmentsAtATime = 512;

// The part of a segment's rows (from `row` on, `length`) that lies in rows [begin, end) of the
// tensor, local to the segment.
LONGHAUL_HOST_DEVICE inline IndexRange part_of(int64_t row, int64_t length, int64_t begin,
                                               int64_t end) {
  const int64_t first = begin - row, last = end - row;
  return {first > 0 ? first : 0, last < length ? last : length};
}

// A band in the coordinates of a small tile: row r of the tile sees column c iff
// r + lo <= c <= r + hi, columns or rows being either of queries and keys.
struct TileBand {
  int lo = 0, hi = 0;

  LONGHAUL_HOST_DEVICE bool sees(int r, int c) const { return r + lo <= c && c <= r + hi; }
};

inline constexpr int64_t kTileBandOpen = 1 << 20;  // tiles are far smaller

LONGHAUL_HOST_DEVICE inline int near_bound(int64_t x) {
  return static_cast<int>(x < -kTileBandOpen ? -kTileBandOpen
                                             : (x > kTileBandOpen ? kTileBandOpen : x));
}

// Rows are queries from i on (any number, also before the segment's first), columns keys from j on.
LONGHAUL_HOST_DEVICE inline TileBand band_by_queries(const Segment& s, int64_t i, int64_t j) {
  return {near_bound(i + s.band_lo - j), near_bound(i + s.band_hi - j)};
}
// Rows are keys from j on, columns queries from i on.
LONGHAUL_HOST_DEVICE inline TileBand band_by_keys(const Segment& s, int64_t i, int64_t j) {
  return {near_bound(j - s.band_hi - i), near_bound(j - s.band_lo - i)};
}

}  // namespace longhaul::kernels::cuda
