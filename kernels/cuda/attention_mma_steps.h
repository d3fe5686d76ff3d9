// How a block of an attention kernel on tensor cores walks through what its tile of rows sees or is
// seen by, a step after the other, and which elements of a step are masked. A class keeps as little
// as it can between steps: registers are dear.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/attention_work.h"

namespace longhaul::kernels::cuda {

// Which columns of a step the rows of a block's tile see: rows [row_begin, row_end) belong to the
// segment, columns [0, columns) exist, and row r sees column c iff r + lo <= c <= r + hi.
struct StepMask {
  TileBand band;
  int row_begin, row_end, columns;

  // Columns [begin, end) of row r.
  struct Range {
    int begin, end;
    __device__ bool has(int c) const { return c >= begin && c < end; }
  };
  __device__ __forceinline__ Range of_row(int r) const {
    if (r < row_begin || r >= row_end) return {0, 0};
    const int end = r + band.hi + 1;
    return {r + band.lo, end < columns ? end : columns};
  }

  // Of rows [first, first + rows) with columns [from, from + width).
  __device__ __forceinline__ TileMask of_tile(int first, int rows, int from, int width) const {
    const int begin = first > row_begin ? first : row_begin;
    const int end = first + rows < row_end ? first + rows : row_end;
    if (begin >= end || from >= columns || from > end - 1 + band.hi ||
        from + width - 1 < begin + band.lo) {
      return TileMask::kEmpty;
    }
    const bool full = begin == first && end == first + rows && from + width <= columns &&
                      from >= end - 1 + band.lo && from + width - 1 <= begin + band.hi;
    return full ? TileMask::kFull : TileMask::kPartial;
  }
};

// The steps of kKeys keys that a tile of queries sees, over all its segments.
template <int kKeys>
class KeySteps {
 public:
  // On the first step; there is one.
  __device__ KeySteps(const AttentionWork& work, const AttentionTile& tile)
      : visit_(static_cast<int>(tile.first)) {
    enter(work, tile);
  }
  __device__ bool next(const AttentionWork& work, const AttentionTile& tile) {
    key_ += kKeys;
    if (key_ < end_) return true;
    if (++visit_ >= tile.last) return false;
    enter(work, tile);
    return true;
  }

  __device__ const Segment& segment(const AttentionWork& work) const {
    return work.segments[work.visits[visit_]];
  }
  __device__ int64_t key() const { return key_; }
  __device__ int keys() const {
    return end_ - key_ < kKeys ? static_cast<int>(end_ - key_) : kKeys;
  }

  // Rows are the tile's queries.
  __device__ StepMask mask(const AttentionWork& work, const AttentionTile& tile) const {
    const Segment& s = segment(work);
    const int64_t i = tile.begin - s.q_row;
    const IndexRange rows = part_of(s.q_row, s.q_len, tile.begin, tile.end);
    return {band_by_queries(s, i, key_), static_cast<int>(rows.begin - i),
            static_cast<int>(rows.end - i), keys()};
  }

 private:
  __device__ void enter(const AttentionWork& work, const AttentionTile& tile) {
    const Segment& s = segment(work);
    const IndexRange queries = part_of(s.q_row, s.q_len, tile.begin, tile.end);
    const IndexRange seen = keys_seen(s, queries.begin, queries.end);
    key_ = seen.begin;
    end_ = seen.end;
  }

  int visit_;
  int64_t key_ = 0, end_ = 0;  // local to the segment
};

// The steps of kQueries queries that see a tile of keys: segment by segment, head by head.
template <int kQueries>
class QuerySteps {
 public:
  // On the first step; there is one unless the group has no heads.
  __device__ QuerySteps(const AttentionWork& work, const AttentionTile& tile, IndexRange group)
      : visit_(static_cast<int>(tile.first)), head_(static_cast<int>(group.begin)) {
    enter(work, tile);
  }
  __device__ bool next(const AttentionWork& work, const AttentionTile& tile, IndexRange group) {
    query_ += kQueries;
    if (query_ < end_) return true;
    if (++head_ >= group.end) {
      head_ = static_cast<int>(group.begin);
      if (++visit_ >= tile.last) return false;
    }
    enter(work, tile);
    return true;
  }

  __device__ const Segment& segment(const AttentionWork& work) const {
    return work.segments[work.visits[visit_]];
  }
  __device__ int head() const { return head_; }
  __device__ int64_t query() const { return query_; }
  __device__ int queries() const {
    return end_ - query_ < kQueries ? static_cast<int>(end_ - query_) : kQueries;
  }

  // Rows are the tile's keys.
  __device__ StepMask mask(const AttentionWork& work, const AttentionTile& tile) const {
    const Segment& s = segment(work);
    const int64_t j = tile.begin - s.k_row;
    const IndexRange rows = part_of(s.k_row, s.k_len, tile.begin, tile.end);
    return {band_by_keys(s, query_, j), static_cast<int>(rows.begin - j),
            static_cast<int>(rows.end - j), queries()};
  }

 private:
  __device__ void enter(const AttentionWork& work, const AttentionTile& tile) {
    const Segment& s = segment(work);
    const IndexRange keys = part_of(s.k_row, s.k_len, tile.begin, tile.end);
    const IndexRange seeing = queries_seeing(s, keys.begin, keys.end);
    query_ = seeing.begin;
    end_ = seeing.end;
  }

  int visit_, head_;
  int64_t query_ = 0, end_ = 0;  // local to the segment
};

}  // namespace longhaul::kernels::cuda
