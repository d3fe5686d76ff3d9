#include "dist/host_staging.h"

#include <absl/strings/str_cat.h>

#include <chrono>
#include <exception>
#include <optional>
#include <thread>

#include "dist/host_buffers.h"
#include "dist/patience.h"
#include "dist/staged_operation.h"
#include "kernels/core/cuda_runtime.h"

namespace longhaul::dist {

// The tensors of one operation: which host memory stands for which of the device's.
class HostStaging::Copies {
 public:
  explicit Copies(HostBuffers& buffers) : buffers_(buffers) {}

  // Host memory of a tensor's shape.
  TensorView like(const ConstTensorView& x) {
    lent_.emplace_back(buffers_, x.bytes());
    return TensorView(lent_.back().memory(), x.dtype(), x.shape());
  }
  // Before the stages run, and after.
  void download(const ConstTensorView& device, const TensorView& host) {
    if (!device.empty()) inputs_.push_back({device.raw(), host.raw(), device.bytes()});
  }
  void upload(const ConstTensorView& host, const TensorView& device) {
    if (!device.empty()) outputs_.push_back({host.raw(), device.raw(), device.bytes()});
  }

  HostBuffers& buffers() const { return buffers_; }
  bool has_inputs() const { return !inputs_.empty(); }
  void start_downloads() const { start(inputs_); }
  void start_uploads() const { start(outputs_); }
  // A transport may still hold the memory.
  void lose() {
    for (HostBuffers::Buffer& buffer : lent_) buffer.lose();
  }

 private:
  struct Copy {
    const std::byte* from;
    std::byte* to;
    int64_t bytes;
  };
  void start(const std::vector<Copy>& copies) const {
    for (const Copy& copy : copies) {
      cuda::copy(buffers_.copies().native, copy.from, copy.to, copy.bytes);
    }
  }

  HostBuffers& buffers_;
  std::vector<HostBuffers::Buffer> lent_;
  std::vector<Copy> inputs_, outputs_;
};

// Inputs to the host, the stages there, outputs to the device.
class HostStaging::StagedCopies final : public Request::Operation {
 public:
  StagedCopies(Transport& transport, std::shared_ptr<Job> job, const Call& call, Copies copies,
               std::unique_ptr<Stages> stages)
      : job_(std::move(job)),
        what_(call.what),
        copies_(std::move(copies)),
        began_(copies_.buffers().events()),
        ended_(copies_.buffers().events()) {
    cuda::record(began_.get(), call.stream.native);
    if (copies_.has_inputs()) download_inputs(transport, call.stream.device);
    stages_.emplace(transport, job_, Stream{}, std::move(stages), what_, call.channel);
    job_->running.push_back(this);
  }

  ~StagedCopies() override {
    std::erase(job_->running, this);
    stages_.reset();  // complains and has its last chance if it is unfinished
    if (!arrived_) {
      copies_.lose();
    } else if (!seen_by_all_ && !job_->communication_failed && std::uncaught_exceptions() == 0) {
      finish_dropped(*job_, what_, [this] { return test(); });
    }
  }

  bool test() override {
    if (!arrived_) {
      if (!stages_->test()) return false;
      upload_outputs();
    }
    seen_by_all_ = seen_by_all_ || cuda::reached(ended_.get());
    return seen_by_all_;
  }

  void wait(const Stream& stream) override {
    if (!arrived_) {
      stages_->wait(stream);
      if (!arrived_) upload_outputs();  // else a test within has done it
    }
    if (stream.device.kind == DeviceKind::kCuda) {
      cuda::wait_for(stream.native, ended_.get());
    } else {
      while (!test()) std::this_thread::yield();
    }
    seen_by_all_ = true;
  }

 private:
  void download_inputs(Transport& transport, Device device) {
    const Stream& side = copies_.buffers().copies();
    cuda::wait_for(side.native, began_.get());
    copies_.start_downloads();
    cuda::record(ended_.get(), side.native);
    // Not waiting for others: what the device still computes counts as compute.
    const auto begin = std::chrono::steady_clock::now();
    while (!cuda::reached(ended_.get())) {
      dist::progress(*job_, transport);
      if (std::chrono::steady_clock::now() - begin > job_->deadline) {
        job_->communication_failed = true;
        fail(ErrorCode::kCommunication,
             absl::StrCat(whereabouts(*job_), ": '", what_, "': ", to_string(device),
                          " has not come to the operation within ",
                          std::chrono::duration<double>(job_->deadline).count(),
                          " s: its work before hangs or is slower than the deadline "
                          "(parallel.timeout_seconds)"));
      }
      std::this_thread::yield();
    }
  }

  void upload_outputs() {
    const Stream& side = copies_.buffers().copies();
    // What the stream did with the outputs before the operation comes first.
    if (!copies_.has_inputs()) cuda::wait_for(side.native, began_.get());
    copies_.start_uploads();
    cuda::record(ended_.get(), side.native);
    arrived_ = true;
  }

  const std::shared_ptr<Job> job_;
  const std::string what_;
  Copies copies_;
  Event began_;  // on the caller's stream
  Event ended_;  // on the copies': of the downloads, later of the uploads
  std::optional<StagedOperation> stages_;
  bool arrived_ = false;      // the stages are done, the uploads under way
  bool seen_by_all_ = false;  // the uploads are done, or the waiting stream knows of them
};

HostBuffers& HostStaging::buffers(const Call& call) {
  if (job_->host_buffers == nullptr) {
    job_->host_buffers = std::make_shared<HostBuffers>(call.stream.device);
  }
  LONGHAUL_CHECK(job_->host_buffers->device() == call.stream.device, "a rank has one device");
  return *job_->host_buffers;
}

HostStaging::Operation HostStaging::run(const Call& call, Copies copies,
                                        std::unique_ptr<Stages> stages) {
  return std::make_unique<StagedCopies>(transport_, job_, call, std::move(copies),
                                        std::move(stages));
}

HostStaging::Operation HostStaging::exchange(const Call& call, std::span<const Send> sends,
                                             std::span<const Recv> recvs) {
  Copies copies(buffers(call));
  std::vector<Send> host_sends;
  std::vector<Recv> host_recvs;
  for (size_t i = 0; i < sends.size(); ++i) {
    // What goes to several ranks is copied once.
    size_t same = 0;
    while (same < i && (sends[same].data.raw() != sends[i].data.raw() ||
                        sends[same].data.bytes() != sends[i].data.bytes())) {
      ++same;
    }
    if (same < i) {
      host_sends.push_back({sends[i].peer, host_sends[same].data});
      continue;
    }
    const TensorView host = copies.like(sends[i].data);
    copies.download(sends[i].data, host);
    host_sends.push_back({sends[i].peer, host});
  }
  for (const Recv& recv : recvs) {
    const TensorView host = copies.like(recv.data);
    copies.upload(host, recv.data);
    host_recvs.push_back({recv.peer, host});
  }
  return run(call, std::move(copies), dist::exchange(host_sends, host_recvs));
}

HostStaging::Operation HostStaging::all_gather(const Call& call, ConstTensorView send,
                                               TensorView recv) {
  const int64_t n = send.elements(), own = place().rank * n;
  LONGHAUL_CHECK(recv.elements() == n * place().size,
                 send.shape().to_string() + " to " + recv.shape().to_string());
  Copies copies(buffers(call));
  const auto part = [](const TensorView& x, int64_t begin, int64_t elements) {
    return x.reshape({x.elements()}).rows(begin, elements);
  };
  const TensorView all = copies.like(recv);
  copies.download(send, part(all, own, n));
  if (part(recv, own, n).raw() == send.raw()) {  // the own piece is in its place
    const int64_t after = recv.elements() - own - n;
    copies.upload(part(all, 0, own), part(recv, 0, own));
    copies.upload(part(all, own + n, after), part(recv, own + n, after));
  } else {
    copies.upload(all, recv);
  }
  return run(call, std::move(copies), dist::all_gather(place(), part(all, own, n), all));
}

HostStaging::Operation HostStaging::reduce_scatter(const Call& call, ConstTensorView send,
                                                   TensorView recv) {
  Copies copies(buffers(call));
  const TensorView pieces = copies.like(send), sum = copies.like(recv);
  copies.download(send, pieces);
  copies.upload(sum, recv);
  return run(call, std::move(copies), dist::reduce_scatter(place(), pieces, sum));
}

HostStaging::Operation HostStaging::all_reduce(const Call& call, TensorView data, ReduceOp op) {
  Copies copies(buffers(call));
  const TensorView host = copies.like(data);
  copies.download(data, host);
  copies.upload(host, data);
  return run(call, std::move(copies), dist::all_reduce(place(), host, op));
}

HostStaging::Operation HostStaging::all_to_all(const Call& call,
                                               std::span<const ConstTensorView> send,
                                               std::span<const TensorView> recv) {
  Copies copies(buffers(call));
  std::vector<ConstTensorView> host_send;
  std::vector<TensorView> host_recv;
  for (const ConstTensorView& x : send) {
    const TensorView host = copies.like(x);
    copies.download(x, host);
    host_send.emplace_back(host);
  }
  for (const TensorView& x : recv) {
    host_recv.push_back(copies.like(x));
    copies.upload(host_recv.back(), x);
  }
  return run(call, std::move(copies), dist::all_to_all(place(), host_send, host_recv));
}

HostStaging::Operation HostStaging::broadcast(const Call& call, TensorView data, int root) {
  Copies copies(buffers(call));
  const TensorView host = copies.like(data);
  if (place().rank == root) {
    copies.download(data, host);
  } else {
    copies.upload(host, data);
  }
  return run(call, std::move(copies), dist::broadcast(place(), host, root));
}

}  // namespace longhaul::dist
