#include "dist/nccl/transport.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "dist/collectives.h"
#include "dist/nccl/communicator.h"
#include "dist/patience.h"

namespace longhaul::dist::nccl {
namespace {

std::optional<ncclDataType_t> number_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return ncclFloat32;
    case DType::kF64:
      return ncclFloat64;
    case DType::kI32:
      return ncclInt32;
    case DType::kI64:
      return ncclInt64;
    case DType::kBF16:
      return std::nullopt;
  }
  return std::nullopt;
}

bool is_integer(DType dtype) { return dtype == DType::kI32 || dtype == DType::kI64; }

size_t bytes_of(const ConstTensorView& x) { return static_cast<size_t>(x.bytes()); }
size_t elements_of(const ConstTensorView& x) { return static_cast<size_t>(x.elements()); }

// The shape alone, for counting.
TensorView shape_of(const ConstTensorView& x) { return TensorView(nullptr, x.dtype(), x.shape()); }

class NcclOperation final : public Request::Operation {
 public:
  NcclOperation(Communicator& communicator, std::shared_ptr<Work> work)
      : communicator_(communicator), work_(std::move(work)) {}
  ~NcclOperation() override {
    const Job& job = communicator_.job();
    if (finished_ || job.communication_failed || std::uncaught_exceptions() > 0) return;
    finish_dropped(job, work_->what, [this] { return test(); });
  }

  bool test() override {
    finished_ = finished_ || communicator_.done(*work_);
    return finished_;
  }
  void wait(const Stream& stream) override {
    communicator_.wait(*work_, stream);
    finished_ = true;
  }

 private:
  Communicator& communicator_;
  const std::shared_ptr<Work> work_;
  bool finished_ = false;  // or the stream that was waited with knows
};

// An operation that moves nothing: all ranks know it and none calls NCCL.
class Nothing final : public Request::Operation {
 public:
  bool test() override { return true; }
  void wait(const Stream&) override {}
};

class NcclTransport final : public DeviceTransport {
 public:
  NcclTransport(Group& group, Device device, const ncclUniqueId& id)
      : group_(group),
        device_(device),
        communicator_(id, group.rank(), group.size(), device, group.shared_job(),
                      [&group] { group.progress(); }) {}

  bool reduces(ReduceOp op, DType dtype) const override {
    // NCCL's maximum loses a NaN, and its sums of bf16 are rounded at every hop.
    return op == ReduceOp::kMax ? is_integer(dtype) : number_type(dtype).has_value();
  }

  Operation exchange(const Call& call, std::span<const Send> sends,
                     std::span<const Recv> recvs) override {
    std::vector<Send> counted_sends;
    std::vector<Recv> counted_recvs;
    std::vector<int> peers;
    // Both sides skip empty messages.
    std::vector<Send> full_sends;
    std::vector<Recv> full_recvs;
    for (const Send& send : sends) {
      counted_sends.push_back({send.peer, shape_of(send.data)});
      if (send.data.empty()) continue;
      full_sends.push_back(send);
      peers.push_back(group_.world_rank(send.peer));
    }
    for (const Recv& recv : recvs) {
      counted_recvs.push_back({recv.peer, shape_of(recv.data)});
      if (recv.data.empty()) continue;
      full_recvs.push_back(recv);
      peers.push_back(group_.world_rank(recv.peer));
    }
    count(call, dist::exchange(counted_sends, counted_recvs));
    if (peers.empty()) return std::make_unique<Nothing>();
    auto work = make_work(call, std::move(peers));
    work->joins_others = true;
    work->calls = [full_sends, full_recvs](ncclComm_t comm, cudaStream_t stream) {
      for (const Send& send : full_sends) {
        const ncclResult_t code =
            ncclSend(send.data.raw(), bytes_of(send.data), ncclInt8, send.peer, comm, stream);
        if (code != ncclSuccess && code != ncclInProgress) return code;
      }
      for (const Recv& recv : full_recvs) {
        const ncclResult_t code =
            ncclRecv(recv.data.raw(), bytes_of(recv.data), ncclInt8, recv.peer, comm, stream);
        if (code != ncclSuccess && code != ncclInProgress) return code;
      }
      return ncclSuccess;
    };
    return start(call, std::move(work));
  }

  Operation all_to_all(const Call& call, std::span<const ConstTensorView> send,
                       std::span<const TensorView> recv) override {
    std::vector<Send> sends;
    std::vector<Recv> recvs;
    for (int rank = 0; rank < group_.size(); ++rank) {
      sends.push_back({rank, send[static_cast<size_t>(rank)]});
      recvs.push_back({rank, recv[static_cast<size_t>(rank)]});
    }
    return exchange(call, sends, recvs);
  }

  Operation all_gather(const Call& call, ConstTensorView send, TensorView recv) override {
    count(call, dist::all_gather(place(), shape_of(send), shape_of(recv)));
    return collective(call, recv, [send, recv](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllGather(send.raw(), recv.raw(), bytes_of(send), ncclInt8, comm, stream);
    });
  }

  Operation reduce_scatter(const Call& call, ConstTensorView send, TensorView recv) override {
    count(call, dist::reduce_scatter(place(), shape_of(send), shape_of(recv)));
    const ncclDataType_t type = number_type(send.dtype()).value();
    return collective(call, send, [send, recv, type](ncclComm_t comm, cudaStream_t stream) {
      return ncclReduceScatter(send.raw(), recv.raw(), elements_of(recv), type, ncclSum, comm,
                               stream);
    });
  }

  Operation all_reduce(const Call& call, TensorView data, ReduceOp op) override {
    count(call, dist::all_reduce(place(), shape_of(data), op));
    const ncclDataType_t type = number_type(data.dtype()).value();
    const ncclRedOp_t reduction = op == ReduceOp::kSum ? ncclSum : ncclMax;
    return collective(call, data, [data, type, reduction](ncclComm_t comm, cudaStream_t stream) {
      return ncclAllReduce(data.raw(), data.raw(), elements_of(data), type, reduction, comm,
                           stream);
    });
  }

  Operation broadcast(const Call& call, TensorView data, int root) override {
    count(call, dist::broadcast(place(), shape_of(data), root));
    return collective(call, data, [data, root](ncclComm_t comm, cudaStream_t stream) {
      return ncclBroadcast(data.raw(), data.raw(), bytes_of(data), ncclInt8, root, comm, stream);
    });
  }

  std::unique_ptr<DeviceTransport> split(Group& part) override { return connect(part, device_); }

 private:
  Place place() const { return {group_.rank(), group_.size()}; }

  void count(const Call& call, const std::unique_ptr<Stages>& stages) {
    Traffic::Counter& counter = group_.traffic()[call.what];
    counter.operations += 1;
    count_messages(counter, group_.rank(), *stages);
  }

  std::shared_ptr<Work> make_work(const Call& call, std::vector<int> peers) {
    auto work = std::make_shared<Work>(communicator_.events(), std::string(call.what));
    const int me = group_.world_rank(group_.rank());
    if (std::ranges::any_of(peers, [me](int peer) { return peer != me; })) std::erase(peers, me);
    std::sort(peers.begin(), peers.end());
    peers.erase(std::unique(peers.begin(), peers.end()), peers.end());
    work->peers = std::move(peers);
    return work;
  }

  Operation start(const Call& call, std::shared_ptr<Work> work) {
    communicator_.start(call.stream, work);
    return std::make_unique<NcclOperation>(communicator_, std::move(work));
  }

  // `whole` is empty on all ranks or on none.
  template <class Calls>
  Operation collective(const Call& call, const ConstTensorView& whole, Calls calls) {
    if (whole.empty()) return std::make_unique<Nothing>();
    std::vector<int> everyone;
    for (int rank = 0; rank < group_.size(); ++rank) everyone.push_back(group_.world_rank(rank));
    auto work = make_work(call, std::move(everyone));
    work->calls = calls;
    return start(call, std::move(work));
  }

  Group& group_;
  const Device device_;
  Communicator communicator_;
};

}  // namespace

std::unique_ptr<DeviceTransport> connect(Group& group, Device device) {
  ncclUniqueId id = {};
  group.agree(attempt([&] {
                if (group.rank() != 0) return;
                const ncclResult_t code = ncclGetUniqueId(&id);
                if (code == ncclSuccess) return;
                fail(ErrorCode::kEnvironment,
                     absl::StrCat("NCCL does not start: ", ncclGetErrorString(code), " (",
                                  ncclGetLastError(nullptr),
                                  "); NCCL_DEBUG=INFO says more, NCCL_SOCKET_IFNAME chooses "
                                  "the network"));
              }),
              "NCCL id");
  const std::string text =
      group.broadcast(std::string(id.internal, sizeof(id.internal)), 0, "NCCL id");
  std::memcpy(id.internal, text.data(), sizeof(id.internal));
  return std::make_unique<NcclTransport>(group, device, id);
}

}  // namespace longhaul::dist::nccl
