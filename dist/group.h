// A set of ranks that communicate. One Group interface over every transport; algorithms of the
// collectives, with their rounds and bytes, are described in dist/ALGORITHMS.md.
//
// - Every operation is called by all ranks of the group in the same order (exchange: by those that
//   take part) and returns a Request; nothing is done in the background beyond what the transport
//   does by itself, so test() it now and then. Any wait lets all of the rank's operations progress,
//   so operations in flight together may be waited for in any order, and on each rank in another.
// - A Request must not outlive its Group.
// - `what` names the operation in the traffic counters and in errors.
// - Every wait has the job's deadline (Job::deadline). At the deadline an Error(kCommunication)
//   names the rank, the step, the place, the operation and the peers that are missing. After an
//   Error(kCommunication) the transport may still hold buffers: report it and abort().
// - Tensors must be contiguous and stay valid until the request is done. Sums are made in a fixed
//   order (by rank) in the accumulator type: f32 for bf16 and f32, f64 for f64.
// - Not thread-safe: a rank's groups are used by one thread.
//
// Host and device. An operation's tensors are all on the host, whatever the stream, or all on the
// stream's device (empty ones too: they say where); on every rank alike. Host tensors always travel
// by the group's own transport and are blocking to wait for. Device tensors are stream-ordered: the
// operation takes place after the work submitted to its stream so far, and Request::wait(stream)
// lets that stream's later work see the result; a stream of the CPU blocks for it instead.
//
//                      host tensors      device tensors:  host staging        own transport (NCCL)
//   starting           returns at once                    blocks until the    returns at once
//                                                         inputs are computed
//   wait(stream)       blocks until done                  blocks until the    returns once the
//                                                         messages are here   device has its orders
//   order on a rank    any                                any                 as started
//   order of sums      by rank                            by rank             fixed, NCCL's own
//   sizes compared     yes                                yes                 no
//
// Over a device transport of its own (use(); see dist/nccl/nccl.h) a group's operations take place
// one after the other in the order of their start, so that all ranks must start them in an order
// that fits: collectives and exchanges alike; exchanges between whose starts the rank does not
// test, wait or poll are one. Sums that NCCL makes otherwise than promised here (bf16, which it
// would round at every hop; maxima of floating-point numbers, which lose NaN) are staged. Messages
// whose sizes differ are not noticed there: they arrive cut, or not until the deadline. The
// deadline of an operation that was waited for passes in whatever polls next: progress() or any
// wait.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "dist/device_transport.h"
#include "dist/host_staging.h"
#include "dist/job.h"
#include "dist/reduce.h"
#include "dist/request.h"
#include "dist/transport.h"
#include "dist/window.h"
#include "kernels/core/error.h"
#include "kernels/core/tensor.h"

namespace longhaul::dist {

class Stages;

class Group {
 public:
  // `job` is shared with the groups split off this one.
  Group(std::unique_ptr<Transport> transport, std::shared_ptr<Job> job);
  ~Group();

  int rank() const;
  int size() const;
  int world_rank(int rank) const;
  Job& job() { return *job_; }
  const std::shared_ptr<Job>& shared_job() const { return job_; }
  Traffic& traffic() { return job_->traffic; }

  // Device tensors go by `transport` from now on, instead of through host memory; also in groups
  // split off later, each with a transport of its own. Collective.
  void use(std::unique_ptr<DeviceTransport> transport) { device_transport_ = std::move(transport); }

  // All sends and receives of one plan step. Messages between two ranks match in order.
  Request exchange(Stream&, std::span<const Send>, std::span<const Recv>, std::string_view what);

  // recv = the ranks' sends, one after the other. recv has size() times the elements of send, which
  // may be this rank's piece of recv.
  Request all_gather(Stream&, ConstTensorView send, TensorView recv, std::string_view what);

  // send is size() equal pieces; recv = the sum over ranks of their piece number rank(). recv may
  // be this rank's piece of send.
  Request reduce_scatter(Stream&, ConstTensorView send, TensorView recv, std::string_view what);

  // In place; every rank ends with the same bits. f32, f64, i64 (and bf16: summed in f32).
  Request all_reduce(Stream&, TensorView data, ReduceOp op, std::string_view what);

  // send[i] goes to rank i and arrives in its recv[rank()]. Sizes may differ, also 0.
  Request all_to_all(Stream&, std::span<const ConstTensorView> send,
                     std::span<const TensorView> recv, std::string_view what);

  Request broadcast(Stream&, TensorView data, int root, std::string_view what);

  void barrier(std::string_view what);

  // Host values; small and blocking.
  int64_t max(int64_t value, std::string_view what);
  double sum(double value, std::string_view what);
  std::string broadcast(std::string value, int root, std::string_view what);

  // Collective. If any rank brings an error, all ranks throw the error of the lowest such rank
  // (its message, with the rank named when not all ranks have it): one message, a clean end.
  // Throws SharedError if the group is the whole job.
  void agree(const std::optional<Error>& mine, std::string_view what);

  // Collective. Ranks of equal color form a group, ordered by key, then by rank.
  std::unique_ptr<Group> split(int color, int key);

  // Collective; null where the transport has none.
  std::unique_ptr<Window> make_window(int slots, int64_t slot_bytes);

  // Lets the rank's operations move on, and throws Error(kCommunication) if one no longer can: what
  // a Context's poll is for.
  void progress();

  // Blocks until `ready` holds, with the deadline and the waiting time counted under `what`.
  void wait_until(const std::function<bool()>& ready, std::string_view what,
                  const std::function<std::string()>& missing = {});

  // Ends the job on all ranks; for errors that the other ranks cannot know of.
  void abort(int exit_status, const std::string& message);

  // "rank 3, step 17, layer 2 attention forward": where this rank is.
  std::string whereabouts() const;

 private:
  Request collective(const Stream&, std::unique_ptr<Stages> stages, std::string_view what);
  Call call(const Stream& stream, std::string_view what) { return {stream, what, ++collectives_}; }
  bool on_device(const Stream& stream, std::span<const ConstTensorView> tensors,
                 std::string_view what) const;
  DeviceOperations& device_operations();
  DeviceOperations& device_reduction(ReduceOp op, DType dtype);

  std::unique_ptr<Transport> transport_;
  std::shared_ptr<Job> job_;
  HostStaging staging_;
  std::unique_ptr<DeviceTransport> device_transport_;  // may be null
  int64_t collectives_ = 0;  // started so far; equal on all ranks: their channels
};

}  // namespace longhaul::dist
