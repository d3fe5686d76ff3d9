#include "dist/job.h"

#include <absl/strings/str_cat.h>

namespace longhaul::dist {

Traffic::Counter& Traffic::operator[](std::string_view what) {
  const auto found = counters_.find(what);
  return found != counters_.end() ? found->second : counters_[std::string(what)];
}

Traffic::Counter Traffic::total() const {
  Counter sum;
  for (const auto& [what, counter] : counters_) {
    sum.operations += counter.operations;
    sum.sent_bytes += counter.sent_bytes;
    sum.received_bytes += counter.received_bytes;
    sum.in_place_bytes += counter.in_place_bytes;
    sum.waited_seconds += counter.waited_seconds;
  }
  return sum;
}

std::string whereabouts(const Job& job) {
  std::string where = absl::StrCat("rank ", job.world_rank);
  if (job.step >= 0) absl::StrAppend(&where, ", step ", job.step);
  if (!job.place.empty()) absl::StrAppend(&where, ", ", job.place);
  return where;
}

}  // namespace longhaul::dist
