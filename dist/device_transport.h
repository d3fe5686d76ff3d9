// How a group's operations on tensors of a device are carried out. Group has host staging
// (host_staging.h) for every device and may be given a transport of the device's own (dist/nccl).
//
// Arguments were checked by Group: tensors are contiguous, none lacks memory, and all that are not
// empty are on `call.stream`'s device. What an operation means is said in group.h.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "dist/reduce.h"
#include "dist/request.h"
#include "dist/transport.h"

namespace longhaul::dist {

class Group;

struct Call {
  Stream stream;
  std::string_view what;
  int64_t channel = 0;  // of messages on the host's transport, see Transport
};

class DeviceOperations {
 public:
  using Operation = std::unique_ptr<Request::Operation>;
  virtual ~DeviceOperations() = default;

  virtual Operation exchange(const Call& call, std::span<const Send> sends,
                             std::span<const Recv> recvs) = 0;
  virtual Operation all_gather(const Call& call, ConstTensorView send, TensorView recv) = 0;
  virtual Operation reduce_scatter(const Call& call, ConstTensorView send, TensorView recv) = 0;
  virtual Operation all_reduce(const Call& call, TensorView data, ReduceOp op) = 0;
  virtual Operation all_to_all(const Call& call, std::span<const ConstTensorView> send,
                               std::span<const TensorView> recv) = 0;
  virtual Operation broadcast(const Call& call, TensorView data, int root) = 0;
};

class DeviceTransport : public DeviceOperations {
 public:
  // Whether sums or maxima of this type keep the promises of group.h; Group stages others.
  virtual bool reduces(ReduceOp op, DType dtype) const = 0;

  // Collective over `part`, a group that was split off this transport's group.
  virtual std::unique_ptr<DeviceTransport> split(Group& part) = 0;
};

}  // namespace longhaul::dist
