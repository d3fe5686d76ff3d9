#include "dist/nccl/communicator.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <exception>
#include <thread>

#include "dist/patience.h"
#include "kernels/core/cuda/check.h"
#include "kernels/core/cuda_runtime.h"

namespace longhaul::dist::nccl {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kFarewell{5000};  // for all ranks to come to the end of a communicator
constexpr const char* kStart = "start of NCCL";

void use(Device device) {
  cuda::check(cudaSetDevice(device.index), "cudaSetDevice", ErrorCode::kEnvironment);
}

// Before everything else that the device could run: others wait for it.
cudaStream_t make_stream(Device device) {
  use(device);
  int least = 0, greatest = 0;
  cuda::check(cudaDeviceGetStreamPriorityRange(&least, &greatest),
              "cudaDeviceGetStreamPriorityRange", ErrorCode::kEnvironment);
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, greatest),
              "cudaStreamCreateWithPriority", ErrorCode::kEnvironment);
  return stream;
}

bool accepted(ncclResult_t code) { return code == ncclSuccess || code == ncclInProgress; }

}  // namespace

Communicator::Communicator(const ncclUniqueId& id, int rank, int size, Device device,
                           std::shared_ptr<Job> job, std::function<void()> poll)
    : device_(device), job_(std::move(job)), poll_(std::move(poll)), events_(device) {
  stream_ = make_stream(device);
  try {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t code = ncclCommInitRankConfig(&comm_, size, id, rank, &config);
    if (!accepted(code)) fail_by_nccl(code, kStart);
    Patience patience(*job_, kStart);
    while (in_progress(kStart)) {
      poll_();
      if (patience.exhausted()) patience.fail("the other ranks of the group");
      patience.pause();
    }
  } catch (...) {
    job_->communication_failed = true;  // the other ranks may still be at it
    abort();
    cuda::destroy_stream(device_.index, stream_);
    throw;
  }
  job_->watched.push_back(this);
}

Communicator::~Communicator() {
  std::erase(job_->watched, this);
  if (job_->communication_failed || std::uncaught_exceptions() > 0 || !queued_.empty() ||
      !issuing_.empty()) {
    abort();
  } else {
    finalize();
  }
  cuda::destroy_stream(device_.index, stream_);
}

void Communicator::abort() noexcept {
  if (comm_ == nullptr) return;
  cudaSetDevice(device_.index);
  ncclCommAbort(comm_);
  comm_ = nullptr;
}

void Communicator::finalize() noexcept {
  if (comm_ == nullptr) return;
  cudaSetDevice(device_.index);
  ncclResult_t state = ncclCommFinalize(comm_);
  const auto end = steady_clock::now() + std::min(job_->deadline, kFarewell);
  while (state == ncclInProgress && steady_clock::now() < end) {
    std::this_thread::sleep_for(std::chrono::microseconds(50));
    if (ncclCommGetAsyncError(comm_, &state) != ncclSuccess) break;
  }
  if (state != ncclSuccess) return abort();
  ncclCommDestroy(comm_);
  comm_ = nullptr;
}

void Communicator::start(const Stream& caller, std::shared_ptr<Work> work) {
  cuda::record(work->began.get(), caller.native);
  const bool joins_others = work->joins_others;
  queued_.push_back(std::move(work));
  if (!joins_others) progress();
}

void Communicator::progress() {
  if (comm_ == nullptr) return;  // has failed, and has said so
  const bool busy = in_progress(first_name());
  if (!busy && !issuing_.empty()) finish_issuing();
  while (issuing_.empty() && !queued_.empty()) issue_next();
  if (busy && !issuing_.empty() && steady_clock::now() - issuing_since_ > job_->deadline) {
    fail_at_deadline(*issuing_.front());
  }
  watch_first();
}

void Communicator::issue_next() {
  use(device_);
  do {
    issuing_.push_back(std::move(queued_.front()));
    queued_.pop_front();
  } while (issuing_.front()->joins_others && !queued_.empty() && queued_.front()->joins_others);
  issuing_since_ = steady_clock::now();

  // Nothing may throw between a group's start and its end, which are the thread's.
  for (const auto& work : issuing_) cuda::wait_for(stream_, work->began.get());
  ncclResult_t code = ncclGroupStart();
  for (const auto& work : issuing_) {
    if (accepted(code)) code = work->calls(comm_, stream_);
  }
  const ncclResult_t end = ncclGroupEnd();
  if (!accepted(code)) fail_by_nccl(code, first_name());
  if (!accepted(end)) fail_by_nccl(end, first_name());
  if (end == ncclSuccess && !in_progress(first_name())) finish_issuing();
}

void Communicator::finish_issuing() {
  for (auto& work : issuing_) {
    cuda::record(work->done.get(), stream_);
    work->issued = true;
    work->turn = steady_clock::now();
    running_.push_back(std::move(work));
  }
  issuing_.clear();
}

void Communicator::watch_first() {
  const auto now = steady_clock::now();
  while (!running_.empty() && cuda::reached(running_.front()->done.get())) {
    running_.pop_front();
    if (!running_.empty()) running_.front()->turn = now;
  }
  if (running_.empty()) return;
  Work& work = *running_.front();
  if (!work.has_begun && cuda::reached(work.began.get())) {
    work.has_begun = true;
    work.turn = now;
  }
  if (now - work.turn > job_->deadline) fail_at_deadline(work);
}

bool Communicator::in_progress(const std::string& what) {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t code = ncclCommGetAsyncError(comm_, &state);
  if (code != ncclSuccess) fail_by_nccl(code, what);
  if (!accepted(state)) fail_by_nccl(state, what);
  return state == ncclInProgress;
}

// What an error that NCCL reports is most likely about.
std::string Communicator::first_name() const {
  if (!running_.empty()) return running_.front()->what;
  if (!issuing_.empty()) return issuing_.front()->what;
  return "NCCL";
}

void Communicator::fail_by_nccl(ncclResult_t code, const std::string& what) {
  const char* const detail = ncclGetLastError(comm_);
  const std::string message =
      absl::StrCat(whereabouts(*job_), ": '", what, "': NCCL: ", ncclGetErrorString(code),
                   detail == nullptr || *detail == '\0' ? "" : absl::StrCat(" (", detail, ")"),
                   "; NCCL_DEBUG=INFO says more");
  job_->communication_failed = true;
  abort();
  fail(ErrorCode::kCommunication, message);
}

void Communicator::fail_at_deadline(const Work& work) {
  job_->communication_failed = true;
  abort();
  if (work.issued && !work.has_begun) {
    fail(ErrorCode::kCommunication,
         absl::StrCat(whereabouts(*job_), ": '", work.what, "': ", to_string(device_),
                      " has not come to the operation within ",
                      std::chrono::duration<double>(job_->deadline).count(),
                      " s: its work before hangs or is slower than the deadline "
                      "(parallel.timeout_seconds)"));
  }
  // NCCL does not tell which of them.
  const std::string peers = name_ranks(work.peers);
  fail_waiting(*job_, work.what, work.peers.size() > 1 ? absl::StrCat("one of ", peers) : peers);
}

bool Communicator::done(Work& work) {
  progress();
  LONGHAUL_CHECK(comm_ != nullptr, absl::StrCat(work.what, ": communication has failed before"));
  return work.issued && cuda::reached(work.done.get());
}

void Communicator::wait(Work& work, const Stream& stream) {
  Patience patience(*job_, work.what);
  const bool on_host = stream.device.kind == DeviceKind::kCpu;
  // Deadlines are the watch's affair, which knows when the operation's turn is.
  while (!done(work) && (on_host || !work.issued)) {
    poll_();
    patience.pause();
  }
  if (!on_host) cuda::wait_for(stream.native, work.done.get());
}

}  // namespace longhaul::dist::nccl
