// A rank's own threads. Ranks may be threads of one process, so nothing here is global; OpenMP,
// whose threads are the process's, is not used.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace longhaul {

class ThreadPool {
 public:
  // `threads` workers in all; the caller of run() is worker 0.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const;

  // Calls work(task, worker) once for each task in [0, tasks) and returns when all are done. Tasks
  // are handed out in order to whichever worker is free, so a task's result must not depend on its
  // worker. `between` (may be empty) is called by worker 0, the caller, after each of its tasks and
  // while it waits: the place to let communication progress. The first exception is rethrown.
  void run(int64_t tasks, const std::function<void(int64_t task, int worker)>& work,
           const std::function<void()>& between = {});

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// The half-open part of [0, n) that belongs to `part` of `parts`, as equal as possible.
struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};
constexpr Range part_of(int64_t n, int64_t part, int64_t parts) {
  const int64_t base = n / parts, extra = n % parts;
  const int64_t begin = part * base + (part < extra ? part : extra);
  return {begin, begin + base + (part < extra ? 1 : 0)};
}

}  // namespace longhaul
