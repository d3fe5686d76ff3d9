// What every operation is given: where it runs, with which threads and scratch memory, and what to
// call now and then so that transfers progress. Cheap to copy; owns nothing.
#pragma once

#include <functional>

#include "kernels/core/arena.h"
#include "kernels/core/stream.h"
#include "kernels/core/thread_pool.h"

namespace longhaul {

struct Context {
  Stream stream = {};
  ThreadPool* pool = nullptr;
  Arena* scratch = nullptr;  // workspace; operations take an Arena::Scope on it
  // Called by the thread that called the operation, about once per millisecond. May be empty.
  // Kernels do not know what it does; the executor uses it to drive communication.
  std::function<void()> poll = {};

  Device device() const { return stream.device; }

  // True while memory is being measured: operations check their arguments, take their scratch and
  // return without touching data.
  bool measuring() const { return scratch->measuring(); }

  // Splits [0, n) over the pool with polling. grain: the fewest items worth one task. The
  // split depends on n, grain and the number of threads only, and tasks write disjoint outputs.
  void parallel_for(int64_t n, int64_t grain,
                    const std::function<void(int64_t begin, int64_t end)>& work) const;
};

}  // namespace longhaul
