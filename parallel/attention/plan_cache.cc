#include "parallel/attention/plan_cache.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace longhaul::parallel {

namespace {

template <class T>
int64_t bytes_of(const std::vector<T>& list) {
  return static_cast<int64_t>(list.size() * sizeof(T));
}

int64_t bytes_of(const Plan& plan) {
  int64_t bytes = bytes_of(plan.slots) + bytes_of(plan.steps) + bytes_of(plan.home_readers);
  for (const Step& step : plan.steps) {
    bytes += bytes_of(step.clears) + bytes_of(step.transfers) + bytes_of(step.tasks);
    for (const Task& task : step.tasks) bytes += bytes_of(task.segments);
  }
  return bytes;
}

}  // namespace

int64_t memory_bytes(const SamplePlans& plans) {
  int64_t bytes = sizeof(SamplePlans) + bytes_of(plans.documents.begins());
  for (int rank = 0; rank < plans.layout.ranks(); ++rank) {
    bytes += bytes_of(plans.layout.runs(rank));
  }
  return bytes + bytes_of(plans.forward) + bytes_of(plans.backward);
}

SamplePlans* PlanCache::find(const Documents& documents) {
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->plans.documents != documents) continue;
    entries_.splice(entries_.begin(), entries_, entry);
    return &entries_.front().plans;
  }
  return nullptr;
}

bool PlanCache::contains(const Documents& documents) const {
  return std::ranges::any_of(
      entries_, [&](const Entry& entry) { return entry.plans.documents == documents; });
}

SamplePlans& PlanCache::add(SamplePlans plans) {
  const int64_t added = memory_bytes(plans);
  int64_t others = bytes_;
  while (!entries_.empty() && (samples() >= most_samples_ || others > most_bytes_)) {
    others -= entries_.back().bytes;
    entries_.pop_back();
  }
  bytes_ = others + added;
  entries_.push_front({std::move(plans), added});
  return entries_.front().plans;
}

}  // namespace longhaul::parallel
