#include "kernels/segment.h"

#include <algorithm>

namespace longhaul {

namespace {

// Sum over i in [0, n) of clamp(i + c, 0, m).
int64_t sum_clamped(int64_t n, int64_t c, int64_t m) {
  // Rows before `first` contribute 0, rows from `full` on contribute m.
  const int64_t first = std::clamp<int64_t>(-c, 0, n), full = std::clamp<int64_t>(m - c, first, n);
  const int64_t ramp = full - first;
  return ramp * (first + c) + ramp * (ramp - 1) / 2 + (n - full) * m;
}

}  // namespace

int64_t area(const Segment& s) {
  if (s.band_hi < s.band_lo) return 0;
  // Keys up to i + band_hi, less keys before i + band_lo; both clamped to [0, k_len].
  return sum_clamped(s.q_len, std::min(s.band_hi + 1, s.k_len + s.q_len), s.k_len) -
         sum_clamped(s.q_len, std::max(s.band_lo, -s.q_len - s.k_len), s.k_len);
}

}  // namespace longhaul
