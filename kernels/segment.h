// A Segment is a band of an attention matrix: the one mask primitive.
//
// Query i and key j are segment-local (0 <= i < q_len, 0 <= j < k_len). Query i sees key j iff
//     i + band_lo <= j <= i + band_hi.
// Full attention, causal, sliding windows, stripes, document borders and one disaggregated task are
// all lists of bands. Rows name where the operands lie in the tensors handed to a kernel; positions
// are global and serve position-dependent bias and dropout only: row i is at q_pos + i * stride.
//
// With positions of stride P (striped layout) and a causal window of W tokens,
//     band_hi = floor((q_pos - k_pos) / P),   band_lo = ceil((q_pos - k_pos - W + 1) / P).
//
// This header is shared by kernels of every device: mask predicate, tile iteration and the merge of
// partial results stand here once. Tests judge it against predicates written in another way.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/core/host_device.h"

namespace longhaul {

struct Segment {
  int64_t q_row = 0;  // first query row in q, out, lse, dq
  int64_t q_len = 0;
  int64_t k_row = 0;  // first key row in k, v, dk, dv
  int64_t k_len = 0;
  int64_t band_lo = 0;
  int64_t band_hi = 0;
  int64_t q_pos = 0;   // global position of query 0
  int64_t k_pos = 0;   // global position of key 0
  int64_t stride = 1;  // distance of neighbouring rows in global positions

  bool operator==(const Segment&) const = default;
};

// Bounds that leave a side of the band open. Far from overflow when added to any row.
inline constexpr int64_t kBandOpen = int64_t{1} << 60;

LONGHAUL_HOST_DEVICE inline bool sees(const Segment& s, int64_t i, int64_t j) {
  return i + s.band_lo <= j && j <= i + s.band_hi;
}

// Keys [begin, end) that at least one query of [i0, i1) sees. Empty ranges have begin >= end.
struct IndexRange {
  int64_t begin = 0;
  int64_t end = 0;
};
LONGHAUL_HOST_DEVICE inline IndexRange keys_seen(const Segment& s, int64_t i0, int64_t i1) {
  const int64_t lo = i0 + s.band_lo, hi = i1 - 1 + s.band_hi + 1;
  return {lo > 0 ? lo : 0, hi < s.k_len ? hi : s.k_len};
}

// Queries [begin, end) that see at least one key of [j0, j1).
LONGHAUL_HOST_DEVICE inline IndexRange queries_seeing(const Segment& s, int64_t j0, int64_t j1) {
  const int64_t lo = j0 - s.band_hi, hi = j1 - 1 - s.band_lo + 1;
  return {lo > 0 ? lo : 0, hi < s.q_len ? hi : s.q_len};
}

// What a tile of queries [i0, i1) x keys [j0, j1) needs: nothing, no mask test, or one per element.
enum class TileMask { kEmpty, kFull, kPartial };
LONGHAUL_HOST_DEVICE inline TileMask classify(const Segment& s, int64_t i0, int64_t i1, int64_t j0,
                                              int64_t j1) {
  if (j1 - 1 < i0 + s.band_lo || j0 > i1 - 1 + s.band_hi) return TileMask::kEmpty;
  // The strictest query for the lower bound is the last one, for the upper bound the first one.
  if (j0 >= i1 - 1 + s.band_lo && j1 - 1 <= i0 + s.band_hi) return TileMask::kFull;
  return TileMask::kPartial;
}

// Number of (query, key) pairs that see each other: the exact work of a segment.
int64_t area(const Segment& s);

// Log-sum-exp merge of two partial softmax results of one row (out, lse): returns the merged lse
// and the factors for the two outputs. An empty part has lse = -inf and out = 0.
template <class A>
struct MergeFactors {
  A lse;
  A first;
  A second;
};
template <class A>
LONGHAUL_HOST_DEVICE inline MergeFactors<A> merge_factors(A lse1, A lse2) {
  const A minus_infinity = -std::numeric_limits<A>::infinity();
  if (lse1 == minus_infinity) return {lse2, A(0), lse2 == minus_infinity ? A(0) : A(1)};
  if (lse2 == minus_infinity) return {lse1, A(1), A(0)};
  const A m = lse1 > lse2 ? lse1 : lse2;
  const A lse = m + std::log(std::exp(lse1 - m) + std::exp(lse2 - m));
  return {lse, std::exp(lse1 - lse), std::exp(lse2 - lse)};
}

}  // namespace longhaul
