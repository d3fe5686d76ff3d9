// Operations on a device's tensors over a transport that moves host memory only: the stages of
// collectives.h run on copies in pinned memory, so results have the same bits as on CPUs, and the
// counters the same bytes. The call waits until the inputs are here, that is, for the stream's
// work before it; outputs are copied to the device beside what the stream computes meanwhile.
//
// Any number of ranks may share a device, as threads or processes.
#pragma once

#include <memory>
#include <vector>

#include "dist/collectives.h"
#include "dist/device_transport.h"
#include "dist/job.h"

namespace longhaul::dist {

class HostStaging final : public DeviceOperations {
 public:
  // The transport must outlive this and its operations.
  HostStaging(Transport& transport, std::shared_ptr<Job> job)
      : transport_(transport), job_(std::move(job)) {}

  Operation exchange(const Call& call, std::span<const Send> sends,
                     std::span<const Recv> recvs) override;
  Operation all_gather(const Call& call, ConstTensorView send, TensorView recv) override;
  Operation reduce_scatter(const Call& call, ConstTensorView send, TensorView recv) override;
  Operation all_reduce(const Call& call, TensorView data, ReduceOp op) override;
  Operation all_to_all(const Call& call, std::span<const ConstTensorView> send,
                       std::span<const TensorView> recv) override;
  Operation broadcast(const Call& call, TensorView data, int root) override;

 private:
  class Copies;
  class StagedCopies;
  Place place() const { return {transport_.rank(), transport_.size()}; }
  HostBuffers& buffers(const Call& call);
  Operation run(const Call& call, Copies copies, std::unique_ptr<Stages> stages);

  Transport& transport_;
  const std::shared_ptr<Job> job_;
};

}  // namespace longhaul::dist
