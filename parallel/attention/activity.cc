#include "parallel/attention/activity.h"

#include <time.h>

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace longhaul::parallel {

namespace {

double seconds_of(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}
double processor_seconds() { return seconds_of(CLOCK_THREAD_CPUTIME_ID); }

constexpr std::array<const char*, 4> kNames = {"compute", "copy", "wait", "messages"};

}  // namespace

double ActivityLog::now() { return seconds_of(CLOCK_MONOTONIC); }

double ActivityLog::processor(Activity::Kind kind) const {
  double sum = 0;
  for (const Activity& a : activities_) sum += a.kind == kind ? a.processor : 0;
  return sum;
}

double ActivityLog::seconds(Activity::Kind kind) const {
  double sum = 0;
  for (const Activity& a : activities_) sum += a.kind == kind ? a.end - a.begin : 0;
  return sum;
}

void ActivityLog::forget() {
  activities_.clear();
  polling_ = 0;
}

std::string ActivityLog::chrome_trace(int rank) const {
  std::string text = "{\"traceEvents\":[";
  absl::StrAppend(&text, "{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":", rank,
                  ",\"args\":{\"name\":\"rank ", rank, "\"}}");
  for (size_t i = 0; i < activities_.size(); ++i) {
    const Activity& a = activities_[i];
    const std::string common =
        absl::StrFormat("\"name\":\"%s %s, step %d\",\"cat\":\"attention\",\"pid\":%d,\"tid\":0",
                        a.direction == Direction::kForward ? "forward" : "backward",
                        kNames[static_cast<size_t>(a.kind)], a.step, rank);
    if (a.kind == Activity::Kind::kMessages) {  // may overlap
      absl::StrAppendFormat(&text, ",\n{%s,\"ph\":\"b\",\"id\":%d,\"ts\":%.3f}", common, i,
                            1e6 * a.begin);
      absl::StrAppendFormat(&text, ",\n{%s,\"ph\":\"e\",\"id\":%d,\"ts\":%.3f}", common, i,
                            1e6 * a.end);
    } else {
      absl::StrAppendFormat(&text, ",\n{%s,\"ph\":\"X\",\"ts\":%.3f,\"dur\":%.3f}", common,
                            1e6 * a.begin, 1e6 * (a.end - a.begin));
    }
  }
  absl::StrAppend(&text, "]}\n");
  return text;
}

ActivityLog::Recording::Recording(ActivityLog* log, Activity::Kind kind, Direction direction,
                                  int step)
    : log_(log) {
  if (log_ == nullptr) return;
  polled_ = log_->polling_;
  activity_ = {.kind = kind,
               .direction = direction,
               .step = step,
               .begin = now(),
               .end = 0,
               .processor = processor_seconds()};
}

ActivityLog::Recording::~Recording() {
  if (log_ == nullptr) return;
  activity_.processor = processor_seconds() - activity_.processor - (log_->polling_ - polled_);
  activity_.end = now();
  log_->add(activity_);
}

ActivityLog::Polling::Polling(ActivityLog* log)
    : log_(log), begin_(log == nullptr ? 0 : processor_seconds()) {}

ActivityLog::Polling::~Polling() {
  if (log_ != nullptr) log_->polling_ += processor_seconds() - begin_;
}

}  // namespace longhaul::parallel
