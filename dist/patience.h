// How a rank waits: first eagerly, then leaving the core to others, so that ranks that share cores
// make progress.
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

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

// What a deadline that passed in `what` says; `of` as above.
[[noreturn]] void fail_waiting(const Job& job, std::string_view what, const std::string& of);

// "ranks 1, 2 and 5" of ranks in any order, also twice; "" of none.
std::string name_ranks(std::vector<int> ranks);

// For the destructor of an operation that is dropped unfinished: says so on stderr and calls `test`
// until it is done, fails, or has had its last chance.
void finish_dropped(const Job& job, std::string_view what, const std::function<bool()>& test);

}  // namespace longhaul::dist
