#include "kernels/core/thread_pool.h"

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/error.h"

namespace longhaul {
namespace {

TEST(ThreadPool, RunsEveryTaskOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int64_t tasks : {0, 1, 3, 200}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(tasks));
      pool.run(tasks, [&](int64_t task, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, threads);
        ++seen[static_cast<size_t>(task)];
      });
      for (const auto& count : seen) EXPECT_EQ(count, 1);
    }
  }
}

TEST(ThreadPool, WorkerZeroIsTheCaller) {
  ThreadPool pool(3);
  const auto caller = std::this_thread::get_id();
  pool.run(100, [&](int64_t, int worker) {
    EXPECT_EQ(worker == 0, std::this_thread::get_id() == caller);
  });
}

TEST(ThreadPool, RethrowsAnExceptionAfterAllTasks) {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    std::atomic<int> done{0};
    const auto work = [&](int64_t task, int) {
      ++done;
      if (task == 3) throw std::runtime_error("task 3");
    };
    EXPECT_THROW(pool.run(10, work), std::runtime_error);
    EXPECT_EQ(done, 10);
    pool.run(10, [&](int64_t, int) { ++done; });  // still usable
    EXPECT_EQ(done, 20);
  }
}

// A task that other workers do not finish before the caller has finished one too, so that `between`
// has an occasion.
class AfterTheCaller {
 public:
  void task(int worker) {
    if (worker == 0) ran_ = true;
    while (!ran_) std::this_thread::yield();
  }

 private:
  std::atomic<bool> ran_{false};
};

TEST(ThreadPool, CallsBetweenOnTheCallerOnly) {
  ThreadPool pool(3);
  const auto caller = std::this_thread::get_id();
  int calls = 0;
  AfterTheCaller after;
  pool.run(
      50, [&](int64_t, int worker) { after.task(worker); },
      [&] {
        EXPECT_EQ(std::this_thread::get_id(), caller);
        ++calls;
      });
  EXPECT_GT(calls, 0);
}

TEST(ThreadPool, AnErrorInBetweenDoesNotAbandonTasks) {
  ThreadPool pool(3);
  std::atomic<int> done{0};
  AfterTheCaller after;
  const auto work = [&](int64_t, int worker) {
    after.task(worker);
    ++done;
  };
  EXPECT_THROW(pool.run(20, work, [] { fail(ErrorCode::kCommunication, "deadline"); }), Error);
  EXPECT_EQ(done, 20);
}

TEST(ThreadPool, PartsAreEqualAndCoverAll) {
  for (int64_t n : {0, 1, 7, 64}) {
    for (int64_t parts : {1, 3, 10}) {
      int64_t next = 0;
      for (int64_t p = 0; p < parts; ++p) {
        const Range range = part_of(n, p, parts);
        EXPECT_EQ(range.begin, next);
        EXPECT_GE(range.size(), n / parts);
        EXPECT_LE(range.size(), (n + parts - 1) / parts);
        next = range.end;
      }
      EXPECT_EQ(next, n);
    }
  }
}

}  // namespace
}  // namespace longhaul
