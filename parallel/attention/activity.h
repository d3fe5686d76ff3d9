// What a rank does during passes of attention, and when: for measurements and traces.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

struct Activity {
  enum class Kind : uint8_t {
    kCompute,   // a task's kernels
    kCopy,      // clearing, packing, publishing, folding and starting messages
    kWait,      // for messages and published windows, with nothing else to do
    kMessages,  // an exchange under way, until this rank sees that it is complete
  };
  Kind kind = Kind::kCompute;
  Direction direction = Direction::kForward;
  int step = 0;               // of the plan
  double begin = 0, end = 0;  // seconds of the node's monotonic clock
  // Seconds of a processor (CLOCK_THREAD_CPUTIME_ID) that the thread which runs the pass spent; the
  // pool's other threads are not counted, nor is what polling took in between.
  double processor = 0;
};

// Of passes one after the other, on one thread.
class ActivityLog {
 public:
  const std::vector<Activity>& activities() const { return activities_; }
  // Seconds of a processor in activities of a kind; in polls while tasks were computed.
  double processor(Activity::Kind kind) const;
  double polling() const { return polling_; }
  // Seconds by the clock in activities of a kind.
  double seconds(Activity::Kind kind) const;
  void forget();

  // Trace events ("Trace Event Format", as Chrome and Perfetto read it), a JSON object.
  std::string chrome_trace(int rank) const;

  // Records one activity for as long as it lives. log: may be null.
  class Recording {
   public:
    Recording(ActivityLog* log, Activity::Kind kind, Direction direction, int step);
    ~Recording();
    Recording(const Recording&) = delete;
    Recording& operator=(const Recording&) = delete;

   private:
    ActivityLog* log_;
    Activity activity_;
    double polled_ = 0;
  };
  // Counts as polling for as long as it lives.
  class Polling {
   public:
    explicit Polling(ActivityLog* log);
    ~Polling();
    Polling(const Polling&) = delete;
    Polling& operator=(const Polling&) = delete;

   private:
    ActivityLog* log_;
    double begin_ = 0;
  };
  static double now();
  void add(const Activity& activity) { activities_.push_back(activity); }

 private:
  std::vector<Activity> activities_;
  double polling_ = 0;
};

}  // namespace longhaul::parallel
