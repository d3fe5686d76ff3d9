// A running communication operation.
#pragma once

#include <memory>

#include "kernels/core/stream.h"

namespace longhaul::dist {

// Move-only handle. Buffers handed to the operation must stay valid and untouched until test() has
// returned true or wait() has returned; a device's, after wait(), in the order of its stream: they
// are the stream's own from then on, and other streams or the host must wait for it. Destroying an
// unfinished request is an internal error that waits for it, since its buffers are about to go.
class Request {
 public:
  class Operation {
   public:
    virtual ~Operation() = default;
    // Lets the operation progress; true once it has completed, for the host and every stream.
    // Never blocks. Throws Error(kCommunication) if it can no longer complete.
    virtual bool test() = 0;
    // Returns once work submitted to the stream afterwards sees the result: a stream of the CPU
    // blocks until complete, see Group for others. Throws Error(kCommunication) at the deadline,
    // naming rank, step, operation and the peers that are missing.
    virtual void wait(const Stream& stream) = 0;
  };

  Request() = default;  // complete
  explicit Request(std::unique_ptr<Operation> operation) : operation_(std::move(operation)) {}

  bool done() const { return operation_ == nullptr; }
  bool test() {
    if (operation_ != nullptr && operation_->test()) operation_.reset();
    return done();
  }
  // Work submitted to `stream` afterwards sees the result.
  void wait(const Stream& stream) {
    if (operation_ == nullptr) return;
    operation_->wait(stream);
    operation_.reset();
  }

 private:
  std::unique_ptr<Operation> operation_;
};

}  // namespace longhaul::dist
