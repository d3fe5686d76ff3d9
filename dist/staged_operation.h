// A Request made of stages of messages, with a local computation after each. Every operation of a
// Group on the host's tensors is one; what the stages are is in collectives.h.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dist/job.h"
#include "dist/request.h"
#include "dist/transport.h"

namespace longhaul::dist {

struct Stage {
  std::vector<Send> sends;
  std::vector<Recv> recvs;
  std::function<void()> then;  // once all messages have completed; may be empty
  bool after_all = false;      // may not start before all earlier stages have ended
};

// Makes the stages one by one, so that long operations need no long list. Owns the memory that the
// stages use.
class Stages {
 public:
  virtual ~Stages() = default;
  // Fills an empty stage; false if there are no more.
  virtual bool next(Stage& stage) = 0;
  // How many stages may be under way. Stage i + depth() starts after stage i has ended.
  virtual int depth() const { return 1; }
};

class StagedOperation final : public Request::Operation {
 public:
  // Starts the first stages. The transport must outlive the operation.
  StagedOperation(Transport& transport, std::shared_ptr<Job> job, const Stream& stream,
                  std::unique_ptr<Stages> stages, std::string_view what, int64_t channel);
  ~StagedOperation() override;

  bool test() override;
  void wait(const Stream&) override;  // blocks: its tensors are the host's

 private:
  struct InFlight {
    std::unique_ptr<Transport::Messages> messages;
    std::function<void()> then;
  };
  void start_stages();
  void start(Stage& stage);
  void advance();
  void give_up();
  std::string missing() const;

  Transport& transport_;
  const std::shared_ptr<Job> job_;
  Stream stream_;
  const std::unique_ptr<Stages> stages_;
  const std::string what_;
  const int64_t channel_;

  Stage upcoming_;  // made, but not started yet
  bool has_upcoming_ = false;
  bool exhausted_ = false;  // no more stages to make
  std::deque<InFlight> in_flight_;
  bool failed_ = false;
};

// What rank `rank` of the group sends to others and receives from them in these stages.
void count_messages(Traffic::Counter& counter, int rank, Stages& stages);

// Lets the rank's operations progress.
void progress(Job& job, Transport& transport);

}  // namespace longhaul::dist
