// How a rank waits: first eagerly, then leaving the core to others, so that ranks that share cores
// make progress.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "dist/job.h"

namespace longhaul::dist {

// One wait. Counts its time under `what` when it ends, however it ends.
class Patience {
 public:
  Patience(Job& job, std::string_view what);
  ~Patience();
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;

  // Returns after a moment: at once for the first calls, after a yield, later after a short sleep.
  void pause();
  bool exhausted() const;  // the job's deadline has passed
  // `of` names what is missing: "rank 2".
  [[noreturn]] void fail(const std::string& of) const;

 private:
  std::chrono::steady_clock::duration waited() const;

  Job& job_;
  const std::string what_;
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  int pauses_ = 0;
};

}  // namespace longhaul::dist
