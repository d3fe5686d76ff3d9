#include "parallel/cost/cluster.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/error.h"

namespace longhaul::parallel {

namespace {

// Where a length lies in the logarithmic grid: between `index` and `next`, at `share` of the way.
struct GridPoint {
  size_t index = 0;
  size_t next = 0;
  double share = 0;
};

GridPoint locate(const std::vector<int64_t>& lengths, double length) {
  const auto at = [&](size_t i) { return static_cast<double>(lengths[i]); };
  if (length <= at(0)) return {0, 0, 0};
  const size_t last = lengths.size() - 1;
  if (length >= at(last)) return {last, last, 0};
  size_t i = 0;
  while (at(i + 1) < length) ++i;
  return {i, i + 1, std::log(length / at(i)) / std::log(at(i + 1) / at(i))};
}

}  // namespace

double KernelProfile::seconds_per_pair(Direction direction, double queries, double keys) const {
  const std::vector<double>& seconds = direction == Direction::kForward ? forward : backward;
  LONGHAUL_CHECK(!lengths.empty() && seconds.size() == lengths.size() * lengths.size());
  const GridPoint q = locate(lengths, queries), k = locate(lengths, keys);
  const auto value = [&](size_t i, size_t j) { return std::log(seconds[i * lengths.size() + j]); };
  const auto row = [&](size_t i) {
    return value(i, k.index) * (1 - k.share) + value(i, k.next) * k.share;
  };
  return std::exp(row(q.index) * (1 - q.share) + row(q.next) * q.share);
}

const KernelProfile* Cluster::profile(DType dtype, int64_t head_dim) const {
  for (const KernelProfile& candidate : profiles) {
    if (candidate.dtype == dtype && candidate.head_dim == head_dim) return &candidate;
  }
  return nullptr;
}

const LinearProfile* Cluster::linear_profile(DType dtype, const HeadShape& heads) const {
  for (const LinearProfile& candidate : linear_profiles) {
    if (candidate.dtype == dtype && candidate.state_decay == heads.state_decay &&
        candidate.head_dim == heads.head_dim && candidate.value_dim == heads.value_dim) {
      return &candidate;
    }
  }
  return nullptr;
}

namespace {

// Queries at which the band's sides cut through the keys, one for each side.
int64_t border_queries(const Segment& s) {
  const int64_t lower = std::clamp<int64_t>(s.q_len - 1 + s.band_lo, 0, s.q_len);
  const int64_t upper = std::clamp<int64_t>(s.k_len - 1 - s.band_hi, 0, s.q_len);
  return lower + upper;
}

}  // namespace

double task_seconds(const Task& task, Direction direction, const Cluster& cluster,
                    const KernelProfile& profile) {
  double seconds = cluster.seconds_per_task;
  const double border =
      direction == Direction::kForward ? profile.forward_border : profile.backward_border;
  for (const Segment& segment : task.segments) {
    const auto queries = static_cast<double>(segment.q_len);
    const auto whole = queries * static_cast<double>(segment.k_len);
    const double in_vain = border * static_cast<double>(border_queries(segment));
    const double pairs = std::min(static_cast<double>(area(segment)) + in_vain, whole);
    // A band is as good as a rectangle of its mean width.
    seconds += profile.seconds_per_pair(direction, queries, std::max(1.0, pairs / queries)) *
               pairs * static_cast<double>(task.q_heads.length);
  }
  return seconds;
}

}  // namespace longhaul::parallel
