#include "kernels/cuda/attention_work.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "kernels/core/transfer.h"

namespace longhaul::kernels::cuda {

namespace {

// Lists travel as arrays of 64-bit integers.
template <class T>
constexpr int64_t words() {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) % sizeof(int64_t) == 0);
  return sizeof(T) / sizeof(int64_t);
}
template <class T>
int64_t words(const std::vector<T>& list) {
  return static_cast<int64_t>(list.size()) * words<T>();
}
template <class T>
int64_t* append(const std::vector<T>& list, int64_t* to) {
  if (!list.empty()) std::memcpy(to, list.data(), list.size() * sizeof(T));
  return to + words(list);
}

// One segment for one tile.
struct Visit {
  int64_t tile;
  int64_t segment;
};

// `row_of` and `length_of` of a segment; `other_rows(segment, begin, end)`: what rows
// [begin, end) of it see, or are seen by.
template <class OtherRows>
AttentionWorkList make(std::span<const Segment> segments, int64_t Segment::*row_of,
                       int64_t Segment::*length_of, int64_t rows, int64_t tile_rows,
                       OtherRows other_rows) {
  const int64_t tiles = (rows + tile_rows - 1) / tile_rows;
  std::vector<Visit> visits;
  std::vector<int64_t> work(static_cast<size_t>(tiles)), count(static_cast<size_t>(tiles));
  AttentionWorkList list;
  list.segments.assign(segments.begin(), segments.end());
  for (size_t n = 0; n < segments.size(); ++n) {
    const Segment& s = segments[n];
    if (s.*length_of == 0) continue;
    for (int64_t t = s.*row_of / tile_rows; t * tile_rows < s.*row_of + s.*length_of; ++t) {
      const IndexRange mine =
          part_of(s.*row_of, s.*length_of, t * tile_rows, std::min(rows, (t + 1) * tile_rows));
      const IndexRange others = other_rows(s, mine.begin, mine.end);
      if (others.begin >= others.end) continue;
      visits.push_back({t, static_cast<int64_t>(n)});
      work[static_cast<size_t>(t)] += others.end - others.begin;
      ++count[static_cast<size_t>(t)];
    }
  }
  std::vector<int64_t> next(static_cast<size_t>(tiles));
  int64_t first = 0;
  for (int64_t t = 0; t < tiles; ++t) {
    const auto at = static_cast<size_t>(t);
    next[at] = first;
    if (count[at] == 0) continue;
    list.tiles.push_back({.begin = t * tile_rows,
                          .end = std::min(rows, (t + 1) * tile_rows),
                          .first = first,
                          .last = first + count[at]});
    first += count[at];
  }
  list.visits.resize(visits.size());
  for (const Visit& visit : visits) {
    list.visits[static_cast<size_t>(next[static_cast<size_t>(visit.tile)]++)] = visit.segment;
  }
  const auto work_of = [&](const AttentionTile& tile) {
    return work[static_cast<size_t>(tile.begin / tile_rows)];
  };
  std::stable_sort(
      list.tiles.begin(), list.tiles.end(),
      [&](const AttentionTile& a, const AttentionTile& b) { return work_of(a) > work_of(b); });
  return list;
}

}  // namespace

AttentionWorkList query_tiles(std::span<const Segment> segments, int64_t rows, int64_t tile_rows) {
  return make(segments, &Segment::q_row, &Segment::q_len, rows, tile_rows, keys_seen);
}

AttentionWorkList key_tiles(std::span<const Segment> segments, int64_t rows, int64_t tile_rows) {
  return make(segments, &Segment::k_row, &Segment::k_len, rows, tile_rows, queries_seeing);
}

namespace {

AttentionWork place(const Context& ctx, const AttentionWorkList& list, const TensorView& memory) {
  const int64_t size = words(list.segments) + words(list.tiles) + words(list.visits);
  const Tensor host(DType::kI64, {size});
  int64_t* const begin = host.span<int64_t>().data();
  append(list.visits, append(list.tiles, append(list.segments, begin)));
  upload(ctx.stream, host, memory.rows(0, size));
  const auto* segments = memory.data<int64_t>();
  const int64_t* tiles = segments + words(list.segments);
  return {.segments = reinterpret_cast<const Segment*>(segments),
          .tiles = reinterpret_cast<const AttentionTile*>(tiles),
          .visits = tiles + words(list.tiles),
          .count = static_cast<int64_t>(list.tiles.size())};
}

}  // namespace

void for_work(const Context& ctx, MakeTiles make, std::span<const Segment> segments, int64_t rows,
              int64_t tile_rows, const std::function<void(const AttentionWork&)>& launch) {
  const int64_t tiles = (rows + tile_rows - 1) / tile_rows;
  // One segment may visit all tiles; many small ones visit one or two each.
  const int64_t most_visits = tiles + 2 * kMostSegmentsAtATime;
  const Arena::Scope scope(*ctx.scratch);
  const TensorView memory = ctx.scratch->allocate(
      DType::kI64,
      {kMostSegmentsAtATime * words<Segment>() + tiles * words<AttentionTile>() + most_visits});
  if (ctx.measuring()) return;
  while (!segments.empty()) {
    auto count = std::min(segments.size(), static_cast<size_t>(kMostSegmentsAtATime));
    AttentionWorkList list = make(segments.first(count), rows, tile_rows);
    while (static_cast<int64_t>(list.visits.size()) > most_visits) {
      count = (count + 1) / 2;
      list = make(segments.first(count), rows, tile_rows);
    }
    // The stream has done with the list before when this one takes its place.
    launch(place(ctx, list, memory));
    segments = segments.subspan(count);
  }
}

}  // namespace longhaul::kernels::cuda
