// Threads that work on items whose results are taken in the order of the items.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {

// One thread puts and takes. At most two items a worker wait, are worked on, or wait to be taken,
// so memory is bounded. Exceptions of `work` are rethrown where the result would be taken. Throws
// Error(kEnvironment) if the system has no more threads.
template <class Item, class Result>
class OrderedWorkers {
 public:
  OrderedWorkers(int64_t threads, std::function<Result(const Item&)> work)
      : most_(2 * static_cast<size_t>(threads)), work_(std::move(work)) {
    try {
      for (int64_t i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
    } catch (const std::system_error& error) {
      stop();
      fail(ErrorCode::kEnvironment,
           absl::StrCat("--threads ", threads, ": the system gives no more than ", threads_.size(),
                        " (", error.code().message(), "); ask for fewer"));
    }
  }
  ~OrderedWorkers() { stop(); }
  OrderedWorkers(const OrderedWorkers&) = delete;
  OrderedWorkers& operator=(const OrderedWorkers&) = delete;

  bool full() const { return jobs_.size() >= most_; }
  bool empty() const { return jobs_.empty(); }

  void put(Item item) {
    auto job = std::make_shared<Job>(std::move(item));
    jobs_.push_back(job);
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(std::move(job));
    }
    changed_.notify_all();
  }

  // Of the first item whose result was not taken yet; waits for it.
  Result take() {
    const std::shared_ptr<Job> job = jobs_.front();
    jobs_.pop_front();
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return job->done; });
    if (job->error) std::rethrow_exception(job->error);
    return std::move(*job->result);
  }

 private:
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  struct Job {
    explicit Job(Item i) : item(std::move(i)) {}
    Item item;
    std::unique_ptr<Result> result;
    std::exception_ptr error;
    bool done = false;
  };

  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      const std::shared_ptr<Job> job = std::move(waiting_.front());
      waiting_.pop_front();
      lock.unlock();
      try {
        job->result = std::make_unique<Result>(work_(job->item));
      } catch (...) {
        job->error = std::current_exception();
      }
      lock.lock();
      job->done = true;
      changed_.notify_all();
    }
  }

  const size_t most_;
  const std::function<Result(const Item&)> work_;
  std::deque<std::shared_ptr<Job>> jobs_;  // put and not taken, in order
  std::mutex mutex_;                       // of all below, and of jobs that are not done
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Job>> waiting_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace longhaul::launch
