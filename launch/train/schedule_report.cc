#include "launch/train/schedule_report.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace longhaul::launch {

namespace {

parallel::Scheduled worse(const parallel::Scheduled& a, const parallel::Scheduled& b) {
  if (a.max_over_mean == 0 || b.max_over_mean == 0) return a.max_over_mean == 0 ? b : a;
  return {.max_over_mean = std::max(a.max_over_mean, b.max_over_mean),
          .rounds = std::min(a.rounds, b.rounds),
          .gave_way = a.gave_way || b.gave_way};
}

}  // namespace

void ScheduleReport::add(const parallel::CoreAttention& attention) {
  const parallel::Scheduled here = worse(attention.plan(parallel::Direction::kForward).scheduled,
                                         attention.plan(parallel::Direction::kBackward).scheduled);
  worst_ = worse(worst_, here);
  if (!here.gave_way || first_) return;
  first_ = here;
  enough_bytes_ = attention.enough_buffer_bytes();
}

parallel::Scheduled ScheduleReport::take() { return std::exchange(worst_, {}); }

std::optional<std::string> ScheduleReport::news(int64_t step) {
  if (!first_ || said_) return std::nullopt;
  said_ = true;
  constexpr int64_t kMiB = int64_t{1} << 20;
  const std::string rounds =
      first_->rounds == nano_batches_
          ? ""
          : absl::StrCat(" and tasks go in ", first_->rounds, " of ", nano_batches_, " rounds");
  return absl::StrFormat(
      "strategy disaggregated gave way to its buffers in step %d: the most loaded rank has %.2f of "
      "the mean work%s; parallel.server_buffer_mib: %d would do for that sample (later ones are in "
      "metrics.jsonl alone)",
      step, first_->max_over_mean, rounds, (enough_bytes_ + kMiB - 1) / kMiB);
}

}  // namespace longhaul::launch
