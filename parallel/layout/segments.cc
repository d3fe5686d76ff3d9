#include "parallel/layout/segments.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::parallel {

namespace {

int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0 ? 1 : 0); }
int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

struct PlacedRun {
  Run run;
  int64_t row = 0;

  int64_t first() const { return run.global_begin; }
  int64_t last() const { return run.position(run.length - 1); }
};

// The stride of the runs that have one; runs of one row fit any.
int64_t common_stride(const RunList& a, const RunList& b) {
  int64_t stride = 0;
  for (const RunList* list : {&a, &b}) {
    for (const Run& run : *list) {
      if (run.length <= 1) continue;
      LONGHAUL_CHECK(stride == 0 || stride == run.stride,
                     absl::StrCat("runs of strides ", stride, " and ", run.stride));
      stride = run.stride;
    }
  }
  return std::max<int64_t>(stride, 1);
}

// Runs with their rows; empty ones are dropped and those that continue their predecessor joined.
std::vector<PlacedRun> place(const RunList& runs, int64_t stride, int64_t row) {
  std::vector<PlacedRun> result;
  for (const Run& run : runs) {
    if (run.length == 0) continue;
    if (!result.empty() && result.back().last() + stride == run.global_begin) {
      result.back().run.length += run.length;
    } else {
      result.push_back({{run.global_begin, run.length, stride}, row});
    }
    row += run.length;
  }
  return result;
}

// The part of a run with positions in [begin, end).
PlacedRun clip(const PlacedRun& placed, int64_t begin, int64_t end) {
  const Run& run = placed.run;
  const int64_t from = std::max<int64_t>(0, ceil_div(begin - run.global_begin, run.stride));
  const int64_t to = std::min(run.length, ceil_div(end - run.global_begin, run.stride));
  if (from >= to) return {{begin, 0, run.stride}, placed.row};
  return {{run.position(from), to - from, run.stride}, placed.row + from};
}

int64_t shifted(int64_t bound, int64_t by) {
  return bound == kBandOpen || bound == -kBandOpen ? bound : bound + by;
}

// Drops leading and trailing rows without a pair. False if nothing is left.
bool trim(Segment& s) {
  if (s.band_hi < s.band_lo) return false;
  const IndexRange q = queries_seeing(s, 0, s.k_len);
  if (q.begin >= q.end) return false;
  const IndexRange k = keys_seen(s, q.begin, q.end);
  if (k.begin >= k.end) return false;
  const int64_t shift = q.begin - k.begin;
  s.band_lo = shifted(s.band_lo, shift);
  s.band_hi = shifted(s.band_hi, shift);
  s.q_row += q.begin;
  s.q_pos += q.begin * s.stride;
  s.q_len = q.end - q.begin;
  s.k_row += k.begin;
  s.k_pos += k.begin * s.stride;
  s.k_len = k.end - k.begin;
  return true;
}

// The band of two runs within one document; a prefix is the caller's.
void append_band(const PlacedRun& q, const PlacedRun& k, const Mask& mask,
                 std::vector<Segment>& segments) {
  if (q.run.length == 0 || k.run.length == 0) return;
  const int64_t stride = q.run.stride, distance = q.first() - k.first();
  Segment s{.q_row = q.row,
            .q_len = q.run.length,
            .k_row = k.row,
            .k_len = k.run.length,
            .band_lo = -kBandOpen,
            .band_hi = kBandOpen,
            .q_pos = q.first(),
            .k_pos = k.first(),
            .stride = stride};
  if (mask.causal) s.band_hi = floor_div(distance, stride);
  if (mask.window > 0) s.band_lo = ceil_div(distance - mask.window + 1, stride);
  if (trim(s)) segments.push_back(s);
}

// What of two runs lies in the document [begin, end). A prefix is cut out such that a query has as
// few segments as can be: queries in it see a rectangle, and for the others it is a part of the
// causal band unless a window hides it.
void append_document(const PlacedRun& q, const PlacedRun& k, int64_t begin, int64_t end,
                     const Mask& mask, std::vector<Segment>& segments) {
  if (mask.prefix == 0) {  // plans of many documents are made while a step waits
    append_band(clip(q, begin, end), clip(k, begin, end), mask, segments);
    return;
  }
  const int64_t border = mask.prefix < end - begin ? begin + mask.prefix : end;
  constexpr Mask kAll{.causal = false, .window = 0, .prefix = 0};
  append_band(clip(q, begin, border), clip(k, begin, mask.causal ? border : end), kAll, segments);
  const PlacedRun after = clip(q, border, end);
  if (mask.window > 0) append_band(after, clip(k, begin, border), kAll, segments);
  append_band(after, clip(k, mask.window > 0 ? border : begin, end), mask, segments);
}

}  // namespace

IndexRange keys_in_reach(int64_t first, int64_t last, const Documents& documents,
                         const Mask& mask) {
  const int64_t last_document = documents.at(last);
  IndexRange reach{documents.begin(documents.at(first)), documents.end(last_document)};
  if (mask.causal) {
    const int64_t begin = documents.begin(last_document);
    const int64_t prefix_end = begin + std::min(mask.prefix, reach.end - begin);
    reach.end = std::max(prefix_end, std::min(reach.end, last + 1));
  }
  // A window hides no prefix.
  if (mask.window > 0 && mask.prefix == 0) {
    reach.begin = std::max(reach.begin, first - mask.window + 1);
  }
  return reach;
}

std::vector<Segment> cut_segments(const RunList& q, const RunList& k, const Documents& documents,
                                  const Mask& mask, int64_t q_row, int64_t k_row) {
  const int64_t stride = common_stride(q, k);
  const std::vector<PlacedRun> k_runs = place(k, stride, k_row);
  std::vector<Segment> segments;
  for (const PlacedRun& q_run : place(q, stride, q_row)) {
    const auto first_of_run = static_cast<std::ptrdiff_t>(segments.size());
    const IndexRange reach = keys_in_reach(q_run.first(), q_run.last(), documents, mask);
    for (const PlacedRun& k_run : k_runs) {
      if (k_run.first() >= reach.end || k_run.last() < reach.begin) continue;
      // Documents that reach into both runs.
      const int64_t begin = documents.at(std::max(q_run.first(), k_run.first()));
      const int64_t end = documents.at(std::min(q_run.last(), k_run.last()));
      for (int64_t d = begin; d <= end; ++d) {
        append_document(q_run, k_run, documents.begin(d), documents.end(d), mask, segments);
      }
    }
    // Against one run of keys they are in order already.
    const auto by_row = [](const Segment& a, const Segment& b) { return a.q_row < b.q_row; };
    const auto begin = segments.begin() + first_of_run;
    if (!std::is_sorted(begin, segments.end(), by_row)) {
      std::stable_sort(begin, segments.end(), by_row);
    }
  }
  return segments;
}

Segment part_of(const Segment& segment, IndexRange q, IndexRange k) {
  Segment s = segment;
  s.q_row += q.begin;
  s.q_pos += q.begin * s.stride;
  s.q_len = q.end - q.begin;
  s.k_row += k.begin;
  s.k_pos += k.begin * s.stride;
  s.k_len = k.end - k.begin;
  s.band_lo = shifted(s.band_lo, q.begin - k.begin);
  s.band_hi = shifted(s.band_hi, q.begin - k.begin);
  if (s.q_len <= 0 || s.k_len <= 0 || !trim(s)) s.q_len = 0;
  return s;
}

}  // namespace longhaul::parallel
