// One NCCL communicator with its stream: queues operations, issues them in order, watches over
// them.
//
// NCCL's rules, which make the states of an operation: while a non-blocking communicator is in
// progress with a group of calls, it takes no other, and the stream holds the calls' kernels only
// once it has ended being so. Connections are made by the first calls that need them, and wait for
// the peers to come to theirs, so starting an operation must not wait for that.
#pragma once

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/host_buffers.h"
#include "dist/job.h"

namespace longhaul::dist::nccl {

// The NCCL calls of one operation.
struct Work {
  Work(EventPool& events, std::string name) : what(std::move(name)), began(events), done(events) {}

  std::string what;
  std::vector<int> peers;     // world ranks, for messages
  bool joins_others = false;  // exchanges: one group with those before and after it
  std::function<ncclResult_t(ncclComm_t, cudaStream_t)> calls;
  Event began;  // on the caller's stream, at the start
  Event done;   // on the communicator's stream, once `issued`
  bool issued = false;
  bool has_begun = false;                      // as observed
  std::chrono::steady_clock::time_point turn;  // when it became the first on the device
};

class Communicator final : public Watched {
 public:
  // Collective. `poll` is called while waiting for the other ranks.
  Communicator(const ncclUniqueId& id, int rank, int size, Device device, std::shared_ptr<Job> job,
               std::function<void()> poll);
  // Collective unless communication has failed: waits, not for ever, until all ranks have come.
  ~Communicator() override;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  EventPool& events() { return events_; }
  // Takes its turn after everything before. Work that joins others is issued by the next progress.
  void start(const Stream& caller, std::shared_ptr<Work> work);
  // Issues what can be issued; throws if NCCL reports an error or a deadline has passed.
  void progress() override;
  bool done(Work& work);
  // Until work submitted to `stream` sees the result.
  void wait(Work& work, const Stream& stream);

  const Job& job() const { return *job_; }

 private:
  bool in_progress(const std::string& what);
  void issue_next();
  void finish_issuing();
  void watch_first();
  std::string first_name() const;
  [[noreturn]] void fail_by_nccl(ncclResult_t code, const std::string& what);
  [[noreturn]] void fail_at_deadline(const Work& work);
  void abort() noexcept;
  void finalize() noexcept;

  const Device device_;
  const std::shared_ptr<Job> job_;
  const std::function<void()> poll_;
  EventPool events_;
  cudaStream_t stream_ = nullptr;
  ncclComm_t comm_ = nullptr;  // null: not made, or aborted

  std::deque<std::shared_ptr<Work>> queued_;
  std::vector<std::shared_ptr<Work>> issuing_;  // of the group that NCCL is in progress with
  std::chrono::steady_clock::time_point issuing_since_;
  std::deque<std::shared_ptr<Work>> running_;  // on the device, in order
};

}  // namespace longhaul::dist::nccl
