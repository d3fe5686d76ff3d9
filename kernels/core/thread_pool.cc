#include "kernels/core/thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/core/error.h"

namespace longhaul {

struct ThreadPool::State {
  struct Job {
    int64_t tasks = 0;
    const std::function<void(int64_t, int)>* work = nullptr;
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
    std::mutex mutex;
    std::exception_ptr error;

    // Takes one task; false when none is left.
    bool take(int worker) {
      const int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return false;
      try {
        (*work)(task, worker);
      } catch (...) {
        std::lock_guard lock(mutex);
        if (!error) error = std::current_exception();
      }
      done.fetch_add(1, std::memory_order_release);
      return true;
    }
  };

  int threads = 1;
  std::vector<std::thread> workers;
  std::mutex mutex;
  std::condition_variable wake;
  std::shared_ptr<Job> job;  // guarded by mutex
  uint64_t generation = 0;   // guarded by mutex
  bool stopping = false;     // guarded by mutex

  void serve(int worker) {
    uint64_t seen = 0;
    for (;;) {
      std::shared_ptr<Job> mine;
      {
        std::unique_lock lock(mutex);
        wake.wait(lock, [&] { return stopping || generation != seen; });
        if (stopping) return;
        seen = generation;
        mine = job;
      }
      while (mine != nullptr && mine->take(worker)) {
      }
    }
  }
};

ThreadPool::ThreadPool(int threads) : state_(std::make_unique<State>()) {
  LONGHAUL_CHECK(threads >= 1);
  state_->threads = threads;
  for (int worker = 1; worker < threads; ++worker) {
    state_->workers.emplace_back([state = state_.get(), worker] { state->serve(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard lock(state_->mutex);
    state_->stopping = true;
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->workers) thread.join();
}

int ThreadPool::threads() const { return state_->threads; }

void ThreadPool::run(int64_t tasks, const std::function<void(int64_t, int)>& work,
                     const std::function<void()>& between) {
  if (tasks <= 0) return;
  // The job is shared, because a late worker may still look at it after the last task is done.
  auto job = std::make_shared<State::Job>();
  job->tasks = tasks;
  job->work = &work;
  if (state_->threads > 1 && tasks > 1) {
    {
      std::lock_guard lock(state_->mutex);
      state_->job = job;
      ++state_->generation;
    }
    state_->wake.notify_all();
  }
  // An error in `between` (a deadline, say) must not unwind while workers still use `work`.
  std::exception_ptr between_error;
  const auto call_between = [&] {
    if (!between || between_error) return;
    try {
      between();
    } catch (...) {
      between_error = std::current_exception();
    }
  };
  while (job->take(0)) call_between();
  while (job->done.load(std::memory_order_acquire) < tasks) {
    call_between();
    std::this_thread::yield();
  }
  if (between_error) std::rethrow_exception(between_error);
  if (job->error) std::rethrow_exception(job->error);
}

}  // namespace longhaul
