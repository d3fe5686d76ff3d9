#include "dist/staged_operation.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <thread>

#include "dist/patience.h"
#include "kernels/core/error.h"

namespace longhaul::dist {
StagedOperation::StagedOperation(Transport& transport, std::shared_ptr<Job> job,
                                 const Stream& stream, std::unique_ptr<Stages> stages,
                                 std::string_view what, int64_t channel)
    : transport_(transport),
      job_(std::move(job)),
      stream_(stream),
      stages_(std::move(stages)),
      what_(what),
      channel_(channel) {
  job_->traffic[what_].operations += 1;
  start_stages();
  job_->running.push_back(this);
}

StagedOperation::~StagedOperation() {
  std::erase(job_->running, this);
  const bool finished = exhausted_ && in_flight_.empty();
  if (finished || job_->communication_failed || std::uncaught_exceptions() > 0) return;
  finish_dropped(*job_, what_, [this] { return test(); });
}

bool StagedOperation::test() {
  LONGHAUL_CHECK(!failed_, what_);
  try {
    advance();
  } catch (const Error& error) {
    give_up();
    throw Error(error.code(), absl::StrCat(whereabouts(*job_), ": '", what_, "': ", error.what()));
  }
  return exhausted_ && in_flight_.empty();
}

void StagedOperation::wait(const Stream&) {
  Patience patience(*job_, what_);
  while (!test()) {
    progress(*job_, transport_);
    if (patience.exhausted()) {
      const std::string of = missing();
      give_up();
      patience.fail(of);
    }
    patience.pause();
  }
}

void StagedOperation::give_up() {
  failed_ = true;
  job_->communication_failed = true;
  in_flight_.clear();
}

void StagedOperation::advance() {
  while (!in_flight_.empty() && in_flight_.front().messages->test()) {
    if (in_flight_.front().then && transport_.moves_data()) in_flight_.front().then();
    in_flight_.pop_front();
    start_stages();
  }
}

void StagedOperation::start_stages() {
  while (!exhausted_ && static_cast<int>(in_flight_.size()) < stages_->depth()) {
    if (!has_upcoming_) {
      upcoming_ = Stage{};
      has_upcoming_ = stages_->next(upcoming_);
      if (!has_upcoming_) {
        exhausted_ = true;
        return;
      }
    }
    if (upcoming_.after_all && !in_flight_.empty()) return;
    start(upcoming_);
    has_upcoming_ = false;
  }
}

void StagedOperation::start(Stage& stage) {
  const auto check = [&](int peer, const auto& data) {
    LONGHAUL_CHECK(peer >= 0 && peer < transport_.size(), absl::StrCat(what_, ": rank ", peer));
    LONGHAUL_CHECK(data.contiguous(), what_);
    LONGHAUL_CHECK(data.empty() || data.raw() != nullptr || !transport_.moves_data(), what_);
  };
  Traffic::Counter& counter = job_->traffic[what_];
  for (const Send& send : stage.sends) {
    check(send.peer, send.data);
    if (send.peer != transport_.rank()) counter.sent_bytes += send.data.bytes();
  }
  for (const Recv& recv : stage.recvs) {
    check(recv.peer, recv.data);
    if (recv.peer != transport_.rank()) counter.received_bytes += recv.data.bytes();
  }
  auto messages = transport_.start(stream_, stage.sends, stage.recvs, channel_);
  in_flight_.push_back({std::move(messages), std::move(stage.then)});
}

std::string StagedOperation::missing() const {
  std::vector<int> ranks;
  for (const InFlight& stage : in_flight_) {
    for (const int peer : stage.messages->missing()) ranks.push_back(transport_.world_rank(peer));
  }
  return name_ranks(std::move(ranks));
}

void count_messages(Traffic::Counter& counter, int rank, Stages& stages) {
  for (Stage stage; stages.next(stage); stage = Stage{}) {
    for (const Send& send : stage.sends) {
      if (send.peer != rank) counter.sent_bytes += send.data.bytes();
    }
    for (const Recv& recv : stage.recvs) {
      if (recv.peer != rank) counter.received_bytes += recv.data.bytes();
    }
  }
}

void progress(Job& job, Transport& transport) {
  transport.progress();
  for (size_t i = 0; i < job.watched.size(); ++i) job.watched[i]->progress();
  for (size_t i = 0; i < job.running.size(); ++i) job.running[i]->test();
}

}  // namespace longhaul::dist
