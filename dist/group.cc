#include "dist/group.h"

#include <absl/strings/str_cat.h>

#include <algorithm>
#include <vector>

#include "dist/agreed_error.h"
#include "dist/collectives.h"
#include "dist/patience.h"
#include "dist/staged_operation.h"

namespace longhaul::dist {
namespace {

Place place_of(const Group& group) { return {group.rank(), group.size()}; }

template <class T>
TensorView view_of(T& value) {
  return {reinterpret_cast<std::byte*>(&value), dtype_of<T>, {1}};
}

// Text travels as 32-bit elements, the smallest unit a tensor of integers has.
int64_t padded(int64_t bytes) { return (bytes + 3) / 4; }

}  // namespace

Group::Group(std::unique_ptr<Transport> transport, std::shared_ptr<Job> job)
    : transport_(std::move(transport)), job_(std::move(job)), staging_(*transport_, job_) {}
Group::~Group() = default;

int Group::rank() const { return transport_->rank(); }
int Group::size() const { return transport_->size(); }
int Group::world_rank(int rank) const { return transport_->world_rank(rank); }

// A transport that moves nothing counts a device's messages like the host's.
bool Group::on_device(const Stream& stream, std::span<const ConstTensorView> tensors,
                      std::string_view what) const {
  const auto is_device = [](const ConstTensorView& x) { return x.device() != kCpu; };
  if (!transport_->moves_data() || std::ranges::none_of(tensors, is_device)) return false;
  for (const ConstTensorView& x : tensors) {
    LONGHAUL_CHECK(x.device() == stream.device || (x.empty() && x.device() == kCpu),
                   absl::StrCat(std::string(what), ": a tensor is on ", to_string(x.device()),
                                ", the stream is of ", to_string(stream.device)));
    LONGHAUL_CHECK(x.contiguous() && (x.empty() || x.raw() != nullptr), std::string(what));
  }
  return true;
}

DeviceOperations& Group::device_operations() {
  return device_transport_ ? static_cast<DeviceOperations&>(*device_transport_) : staging_;
}

DeviceOperations& Group::device_reduction(ReduceOp op, DType dtype) {
  const bool native = device_transport_ && device_transport_->reduces(op, dtype);
  return native ? static_cast<DeviceOperations&>(*device_transport_) : staging_;
}

Request Group::exchange(Stream& stream, std::span<const Send> sends, std::span<const Recv> recvs,
                        std::string_view what) {
  std::vector<ConstTensorView> tensors;
  for (const Send& send : sends) tensors.push_back(send.data);
  for (const Recv& recv : recvs) tensors.emplace_back(recv.data);
  if (on_device(stream, tensors, what)) {
    for (const Send& send : sends) LONGHAUL_CHECK(send.peer >= 0 && send.peer < size());
    for (const Recv& recv : recvs) LONGHAUL_CHECK(recv.peer >= 0 && recv.peer < size());
    return Request(device_operations().exchange({stream, what}, sends, recvs));
  }
  return Request(std::make_unique<StagedOperation>(*transport_, job_, stream,
                                                   dist::exchange(sends, recvs), what, 0));
}

Request Group::collective(const Stream& stream, std::unique_ptr<Stages> stages,
                          std::string_view what) {
  const int64_t channel = ++collectives_;
  return Request(std::make_unique<StagedOperation>(*transport_, job_, stream, std::move(stages),
                                                   what, channel));
}

Request Group::all_gather(Stream& stream, ConstTensorView send, TensorView recv,
                          std::string_view what) {
  if (on_device(stream, {{send, recv}}, what)) {
    return Request(device_operations().all_gather(call(stream, what), send, recv));
  }
  return collective(stream, dist::all_gather(place_of(*this), send, recv), what);
}

Request Group::reduce_scatter(Stream& stream, ConstTensorView send, TensorView recv,
                              std::string_view what) {
  if (on_device(stream, {{send, recv}}, what)) {
    DeviceOperations& device = device_reduction(ReduceOp::kSum, send.dtype());
    return Request(device.reduce_scatter(call(stream, what), send, recv));
  }
  return collective(stream, dist::reduce_scatter(place_of(*this), send, recv), what);
}

Request Group::all_reduce(Stream& stream, TensorView data, ReduceOp op, std::string_view what) {
  if (on_device(stream, {{data}}, what)) {
    DeviceOperations& device = device_reduction(op, data.dtype());
    return Request(device.all_reduce(call(stream, what), data, op));
  }
  return collective(stream, dist::all_reduce(place_of(*this), data, op), what);
}

Request Group::all_to_all(Stream& stream, std::span<const ConstTensorView> send,
                          std::span<const TensorView> recv, std::string_view what) {
  std::vector<ConstTensorView> tensors(send.begin(), send.end());
  tensors.insert(tensors.end(), recv.begin(), recv.end());
  if (on_device(stream, tensors, what)) {
    const auto ranks = static_cast<size_t>(size());
    LONGHAUL_CHECK(send.size() == ranks && recv.size() == ranks, "one tensor per rank");
    return Request(device_operations().all_to_all(call(stream, what), send, recv));
  }
  return collective(stream, dist::all_to_all(place_of(*this), send, recv), what);
}

Request Group::broadcast(Stream& stream, TensorView data, int root, std::string_view what) {
  if (on_device(stream, {{data}}, what)) {
    LONGHAUL_CHECK(root >= 0 && root < size());
    return Request(device_operations().broadcast(call(stream, what), data, root));
  }
  return collective(stream, dist::broadcast(place_of(*this), data, root), what);
}

void Group::barrier(std::string_view what) {
  Stream stream;
  collective(stream, dist::barrier(place_of(*this)), what).wait(stream);
}

int64_t Group::max(int64_t value, std::string_view what) {
  Stream stream;
  all_reduce(stream, view_of(value), ReduceOp::kMax, what).wait(stream);
  return value;
}

double Group::sum(double value, std::string_view what) {
  Stream stream;
  all_reduce(stream, view_of(value), ReduceOp::kSum, what).wait(stream);
  return value;
}

std::string Group::broadcast(std::string value, int root, std::string_view what) {
  Stream stream;
  int64_t bytes = static_cast<int64_t>(value.size());
  broadcast(stream, view_of(bytes), root, what).wait(stream);
  value.resize(static_cast<size_t>(padded(bytes) * size_of(DType::kI32)));
  const TensorView text(reinterpret_cast<std::byte*>(value.data()), DType::kI32, {padded(bytes)});
  broadcast(stream, text, root, what).wait(stream);
  value.resize(static_cast<size_t>(bytes));
  return value;
}

void Group::agree(const std::optional<Error>& mine, std::string_view what) {
  // The lowest rank with an error wins the maximum; 0 if there is none, the usual case.
  const int64_t winner = max(mine ? size() - rank() : 0, what);
  if (winner == 0) return;
  const bool everyone = max(mine ? 0 : 1, what) == 0;
  const int root = size() - static_cast<int>(winner);
  const int64_t code = max(rank() == root ? static_cast<int64_t>(mine->code()) : 0, what);
  const std::string message = broadcast(mine ? mine->what() : "", root, what);
  const Error error(static_cast<ErrorCode>(code),
                    everyone ? message : absl::StrCat("rank ", world_rank(root), ": ", message));
  if (size() == job_->world_size) throw SharedError(error);
  throw AgreedError(error, size());  // ranks outside of this group do not know of it
}

std::unique_ptr<Group> Group::split(int color, int key) {
  barrier("split");  // with a deadline, which the transport's own collectives do not have
  auto part = std::make_unique<Group>(transport_->split(color, key), job_);
  if (device_transport_) part->use(device_transport_->split(*part));
  return part;
}

std::unique_ptr<Window> Group::make_window(int slots, int64_t slot_bytes) {
  LONGHAUL_CHECK(slots >= 0 && slot_bytes >= 0);
  barrier("make window");
  std::unique_ptr<Window> window;
  agree(attempt([&] { window = transport_->make_window(slots, slot_bytes); }), "make window");
  return window;
}

void Group::progress() { dist::progress(*job_, *transport_); }

void Group::wait_until(const std::function<bool()>& ready, std::string_view what,
                       const std::function<std::string()>& missing) {
  Patience patience(*job_, what);
  while (!ready()) {
    progress();
    if (patience.exhausted()) {
      job_->communication_failed = true;
      patience.fail(missing ? missing() : "");
    }
    patience.pause();
  }
}

void Group::abort(int exit_status, const std::string& message) {
  transport_->abort(exit_status, message);
}

std::string Group::whereabouts() const { return dist::whereabouts(*job_); }

}  // namespace longhaul::dist
