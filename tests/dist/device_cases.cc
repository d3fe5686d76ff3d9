// Operations on a device's tensors: the same bits as on the host's, counted alike, in the order of
// the stream.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cstring>

#include "dist/host_buffers.h"
#include "kernels/core/random.h"
#include "kernels/core/transfer.h"
#include "tests/dist/suite.h"

namespace longhaul::dist::testing {
namespace {

// A stream of the device, and tensors there.
class OnDevice {
 public:
  explicit OnDevice(Device device) : owned_(device), stream(owned_.get()) {}

  Tensor tensor(DType dtype, const Shape& shape) const {
    return Tensor(dtype, shape, stream.device);
  }
  Tensor copy(const ConstTensorView& host) const {
    Tensor result = tensor(host.dtype(), host.shape());
    upload(stream, host, result);
    return result;
  }
  void expect_same(const ConstTensorView& got, const ConstTensorView& host,
                   const std::string& what) const {
    const Tensor here = on_host(stream, got);
    expect(here.view().bytes() == host.bytes() &&
               (host.empty() ||
                std::memcmp(here.view().raw(), host.raw(), static_cast<size_t>(host.bytes())) == 0),
           absl::StrCat(what, " of ", host.elements(), " ", std::string(name(host.dtype()))));
  }

 private:
  OwnedStream owned_;

 public:
  Stream stream;
};

// What the host's tensors were counted for is what the device's are.
void expect_counted(Group& group) {
  const Traffic::Counter host = group.traffic()["host"], device = group.traffic()["device"];
  expect(
      host.operations == device.operations && host.sent_bytes == device.sent_bytes &&
          host.received_bytes == device.received_bytes,
      absl::StrCat(device.operations, " operations, ", device.sent_bytes, " of ", host.sent_bytes,
                   " sent, ", device.received_bytes, " of ", host.received_bytes, " received"));
}

constexpr int64_t kSizes[] = {0, 1, 3, 1000, 16385};

void all_gather(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  group.traffic().reset();
  for_each_type([&]<class T>() {
    for (const int64_t n : kSizes) {
      const Tensor send = filled<T>(group.rank(), n);
      Tensor recv(dtype_of<T>, {group.size() * n});
      group.all_gather(stream, send, recv, "host").wait(stream);
      const Tensor there = at.tensor(recv.view().dtype(), recv.shape());
      group.all_gather(stream, at.copy(send), there, "device").wait(stream);
      at.expect_same(there, recv, "all-gather");

      const Tensor in_place = at.tensor(dtype_of<T>, {group.size(), n});
      const TensorView own = in_place.view().rows(group.rank(), 1);
      upload(stream, send.view().reshape(own.shape()), own);
      group.all_gather(stream, send, recv, "host").wait(stream);
      group.all_gather(stream, own, in_place, "device").wait(stream);
      at.expect_same(in_place, recv, "all-gather in place");
    }
  });
  expect_counted(group);
}

void reduce_scatter(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  group.traffic().reset();
  const auto check = [&]<class T>(int64_t n) {
    const Tensor send = filled<T>(group.rank(), group.size() * n);
    Tensor recv(dtype_of<T>, {n});
    const Tensor there = at.tensor(recv.view().dtype(), recv.shape()), in_place = at.copy(send);
    const TensorView own = in_place.view().rows(group.rank() * n, n);
    for (const TensorView& target : {there.view(), own}) {
      group.reduce_scatter(stream, send, recv, "host").wait(stream);
      group.reduce_scatter(stream, in_place, target, "device").wait(stream);
      at.expect_same(target, recv, "reduce-scatter");
    }
  };
  for_each_type([&]<class T>() {
    for (const int64_t n : kSizes) check.template operator()<T>(n);
  });
  check.operator()<float>(300'007);  // two slices
  expect_counted(group);
}

void all_reduce(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  group.traffic().reset();
  const auto check = [&]<class T>(int64_t n) {
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax}) {
      Tensor data = filled<T>(group.rank(), n);
      const Tensor there = at.copy(data);
      group.all_reduce(stream, data, op, "host").wait(stream);
      group.all_reduce(stream, there, op, "device").wait(stream);
      at.expect_same(there, data, "all-reduce");
    }
  };
  for_each_type([&]<class T>() {
    for (const int64_t n : {0, 1, 3, 2049, 8193}) check.template operator()<T>(n);
  });
  check.operator()<float>(270'001 * int64_t{group.size()});  // two slices
  expect_counted(group);
}

void all_to_all(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  group.traffic().reset();
  // Uneven, with empty pairs; the messages of a pair differ by direction.
  const auto count = [](int from, int to) { return int64_t{(from * 3 + to * 5) % 7} * 411; };
  std::vector<Tensor> sent, received, sent_there, received_there;
  std::vector<ConstTensorView> send, send_there;
  std::vector<TensorView> recv, recv_there;
  for (int peer = 0; peer < group.size(); ++peer) {
    sent.push_back(filled<double>(group.rank() * 10 + peer, count(group.rank(), peer)));
    sent_there.push_back(at.copy(sent.back()));
    received.emplace_back(DType::kF64, Shape{count(peer, group.rank())});
    received_there.push_back(at.tensor(DType::kF64, received.back().shape()));
    send.emplace_back(sent.back().view());
    send_there.emplace_back(sent_there.back().view());
    recv.push_back(received.back());
    recv_there.push_back(received_there.back());
  }
  group.all_to_all(stream, send, recv, "host").wait(stream);
  group.all_to_all(stream, send_there, recv_there, "device").wait(stream);
  for (size_t peer = 0; peer < recv.size(); ++peer) {
    at.expect_same(recv_there[peer], recv[peer], "all-to-all");
  }
  expect_counted(group);
}

void broadcast(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  for_each_type([&]<class T>() {
    for (int root = 0; root < group.size(); ++root) {
      for (const int64_t n : kSizes) {
        const Tensor there = at.copy(filled<T>(group.rank() + 3, n));
        group.broadcast(stream, there, root, "broadcast").wait(stream);
        at.expect_same(there, filled<T>(root + 3, n), "broadcast");
      }
    }
  });
}

// Several messages for every pair, oneself included, of different sizes, also empty.
void exchange(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  const auto content = [](int from, int to, int number) {
    return filled<float>(from * 100 + to * 10 + number, int64_t{number} * 7001 * (number % 3));
  };
  std::vector<Tensor> sent, received;
  std::vector<Send> sends;
  std::vector<Recv> recvs;
  for (int number = 0; number < 5; ++number) {
    for (int peer = 0; peer < group.size(); ++peer) {
      sent.push_back(at.copy(content(group.rank(), peer, number)));
      received.push_back(at.tensor(DType::kF32, sent.back().shape()));
      sends.push_back({peer, sent.back()});
      recvs.push_back({peer, received.back()});
    }
  }
  group.exchange(stream, sends, recvs, "exchange").wait(stream);
  size_t next = 0;
  for (int number = 0; number < 5; ++number) {
    for (int peer = 0; peer < group.size(); ++peer) {
      at.expect_same(received[next++], content(peer, group.rank(), number), "message");
    }
  }
  Request nothing = group.exchange(stream, {}, {}, "nothing");
  nothing.wait(stream);
  expect(nothing.done());
}

// The same memory is written, sent round the ring and written again, in the stream's order only.
void stream_order(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  constexpr int64_t kElements = 50'000;
  const int next = (group.rank() + 1) % group.size();
  const int previous = (group.rank() + group.size() - 1) % group.size();
  const Tensor out = at.tensor(DType::kI32, {kElements}), in = at.tensor(DType::kI32, {kElements});
  std::vector<Tensor> arrived;
  const OwnedStream other(stream.device);
  for (int round = 0; round < 8; ++round) {
    upload(stream, filled<int32_t>(group.rank() + round, kElements), out);
    const Send send{next, out};
    const Recv recv{previous, in};
    Request request = group.exchange(stream, {&send, 1}, {&recv, 1}, "ring");
    // Also what another stream does after waiting, and a host that only tests.
    const bool elsewhere = round % 3 == 1;
    if (round % 3 == 2) group.wait_until([&] { return request.test(); }, "ring");
    request.wait(elsewhere ? other.get() : stream);
    arrived.push_back(on_host(elsewhere ? other.get() : stream, in));
    if (elsewhere) wait_until_idle(other.get());
  }
  for (int round = 0; round < 8; ++round) {
    const Tensor expected = filled<int32_t>(previous + round, kElements);
    expect(std::ranges::equal(arrived[static_cast<size_t>(round)].span<int32_t>(),
                              expected.span<int32_t>()),
           absl::StrCat("round ", round));
  }
}

// Several under way, started in one order everywhere, waited for in every order; the exchanges'
// two sides are started one by one.
void in_flight(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  constexpr int64_t kElements = 30'011;
  const int size = group.size(), rank = group.rank();
  for (int round = 0; round < 3; ++round) {
    Tensor sum = filled<float>(rank, kElements);
    const Tensor mine = filled<int64_t>(rank, 77);
    const Tensor sum_there = at.copy(sum), mine_there = at.copy(mine);
    const Tensor gathered = at.tensor(DType::kI64, {size * int64_t{77}});
    const Tensor arrived = at.tensor(DType::kI64, {77});
    const Send send{(rank + 1) % size, mine_there};
    const Recv recv{(rank + size - 1) % size, arrived};
    std::vector<Request> requests;
    requests.push_back(group.exchange(stream, {&send, 1}, {}, "send"));
    requests.push_back(group.exchange(stream, {}, {&recv, 1}, "receive"));
    requests.push_back(group.all_reduce(stream, sum_there, ReduceOp::kSum, "sum"));
    requests.push_back(group.all_reduce(stream, sum, ReduceOp::kSum, "sum of the host's"));
    requests.push_back(group.all_gather(stream, mine_there, gathered, "gather"));
    std::rotate(requests.begin(), requests.begin() + (rank + round) % 5, requests.end());
    for (Request& request : requests) request.wait(stream);
    at.expect_same(sum_there, sum, "sum");
    at.expect_same(arrived, filled<int64_t>(recv.peer, 77), "message");
    for (int r = 0; r < size; ++r) {
      at.expect_same(gathered.view().rows(r * 77, 77), filled<int64_t>(r, 77), "piece");
    }
  }
}

void split(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  const auto part = group.split(group.rank() % 2, -group.rank());
  Tensor sum = filled<float>(group.rank(), 30'001);
  const Tensor there = at.copy(sum);
  part->all_reduce(stream, sum, ReduceOp::kSum, "host").wait(stream);
  part->all_reduce(stream, there, ReduceOp::kSum, "device").wait(stream);
  at.expect_same(there, sum, "sum of a part");
}

// What the host's tensors need on a group whose stream is a device's.
void host_values(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  group.barrier("barrier");
  expect(group.max(group.rank(), "max") == group.size() - 1);
  group.agree(std::nullopt, "agree");
  const Tensor host = filled<float>(group.rank(), 10), there = at.copy(host);
  const Send mixed[] = {{group.rank(), host}, {group.rank(), there}};
  expect_contains(
      expect_error(ErrorCode::kInternal, [&] { group.exchange(stream, mixed, {}, "mixed"); }),
      "mixed: a tensor is on cpu");
  Stream of_cpu;
  expect_error(ErrorCode::kInternal,
               [&] { group.all_reduce(of_cpu, there, ReduceOp::kSum, "elsewhere"); });
}

// Any value: another order of summation would show.
void staged_order(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t n : {3001, 40'001}) {
      Tensor data(dtype, {n});
      for (int64_t i = 0; i < n; ++i) {
        const auto value = static_cast<float>(
            random_normal({7, static_cast<uint64_t>(group.rank())}, static_cast<uint64_t>(i)));
        const size_t at_i = static_cast<size_t>(i);
        if (dtype == DType::kF32) data.span<float>()[at_i] = value;
        if (dtype == DType::kBF16) data.span<bf16>()[at_i] = bf16(value);
      }
      const Tensor there = at.copy(data);
      group.all_reduce(stream, data, ReduceOp::kSum, "host").wait(stream);
      group.all_reduce(stream, there, ReduceOp::kSum, "device").wait(stream);
      at.expect_same(there, data, "sum");
    }
  }
}

// Sends and receives of oneself in different exchanges, waited for one by one.
void staged_self_later(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  const Tensor host = filled<float>(group.rank(), 50'000), sent = at.copy(host);
  const Tensor received = at.tensor(DType::kF32, {50'000});
  const Send send{group.rank(), sent};
  const Recv recv{group.rank(), received};
  Request first = group.exchange(stream, {&send, 1}, {}, "to myself");
  first.test();
  group.exchange(stream, {}, {&recv, 1}, "from myself").wait(stream);
  first.wait(stream);
  at.expect_same(received, host, "message to myself");
}

// From the second step on, nothing is allocated.
void staged_reuse(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  const Tensor data = at.tensor(DType::kF32, {20'000});
  const Tensor all = at.tensor(DType::kF32, {group.size() * int64_t{20'000}});
  int64_t after_first = 0;
  for (int step = 0; step < 5; ++step) {
    Request gather = group.all_gather(stream, data, all, "gather");
    group.all_reduce(stream, data, ReduceOp::kSum, "sum").wait(stream);
    gather.wait(stream);
    wait_until_idle(group.job().host_buffers->copies());
    const int64_t bytes = group.job().host_buffers->allocated_bytes();
    if (step == 0) after_first = bytes;
    expect(bytes > 0 && bytes == after_first, absl::StrCat(bytes, " after step ", step));
  }
}

// Differing sizes and ranks that do not come are noticed as on the host.
void staged_failures(Group& group, const OnDevice& at) {
  if (group.size() == 1) return;
  const auto before = group.job().deadline;
  for (const bool come : {true, false}) {
    const auto broken = group.split(0, group.rank());
    Stream stream = at.stream;
    const Tensor data = at.tensor(DType::kF32, {100});
    const Send send{1, data};
    const Recv recv{0, data.view().rows(0, 99)};
    if (group.rank() == 0 && come) {
      group.job().deadline = std::chrono::milliseconds(100);
      (void)attempt([&] { broken->exchange(stream, {&send, 1}, {}, "odd").wait(stream); });
    } else if (group.rank() == 1) {
      group.job().deadline = std::chrono::milliseconds(come ? 10'000 : 100);
      const std::string message = expect_error(ErrorCode::kCommunication, [&] {
        broken->exchange(stream, {}, {&recv, 1}, "odd").wait(stream);
      });
      expect_contains(message, "'odd'");
      expect_contains(message, come ? "the ranks disagree about the operation" : "from rank ");
    }
    group.job().deadline = before;
    group.job().communication_failed = false;
    group.barrier("after the failure");
  }
}

// The last rank never comes; the others say so, after the deadline, also from a poll, when the wait
// has only told the stream. The group's communicator is gone then.
void native_deadline(Group& group, const OnDevice& at) {
  if (group.size() == 1) return;
  Job& job = group.job();
  for (const bool exchanges : {false, true}) {
    const auto broken = group.split(0, group.rank());
    const int last = group.size() - 1;
    if (group.rank() != last) {
      Stream stream = at.stream;
      const Tensor data = at.tensor(DType::kF32, {50'000});
      const auto before = job.deadline;
      job.deadline = std::chrono::milliseconds(500);
      job.step = 17;
      const std::string message = expect_error(ErrorCode::kCommunication, [&] {
        const Recv recv{last, data};
        if (exchanges) {
          broken->exchange(stream, {}, {&recv, 1}, "gradients").wait(stream);
        } else {
          broken->all_reduce(stream, data, ReduceOp::kSum, "gradients").wait(stream);
        }
        for (;;) group.progress();
      });
      expect_contains(message, absl::StrCat("rank ", job.world_rank, " waited 0.5 s at step 17"));
      expect_contains(message, "'gradients' from ");
      expect_contains(message, absl::StrCat(" ", last, ": the peer is dead"));
      job.deadline = before;
      job.step = -1;
    }
    group.barrier("after the deadline");
    job.communication_failed = true;  // the last rank does not wait for farewells
    if (group.rank() == last) continue;
    expect_error(ErrorCode::kInternal, [&] {
      const Tensor data = at.tensor(DType::kF32, {10});
      Stream stream = at.stream;
      broken->all_reduce(stream, data, ReduceOp::kSum, "afterwards").wait(stream);
    });
  }
  job.communication_failed = false;
}

// Exchanges that are started one by one are one: in whichever order each rank starts its own, all
// at once have a peer.
void native_joins_exchanges(Group& group, const OnDevice& at) {
  Stream stream = at.stream;
  constexpr int64_t kElements = 3001;
  std::vector<Tensor> sent, received;
  std::vector<Request> requests;
  for (int i = 0; i < group.size(); ++i) {
    const int peer = group.rank() % 2 == 0 ? i : group.size() - 1 - i;
    sent.push_back(at.copy(filled<float>(group.rank() * 10 + peer, kElements)));
    received.push_back(at.tensor(DType::kF32, {kElements}));
    const Send send{peer, sent.back()};
    const Recv recv{peer, received.back()};
    requests.push_back(group.exchange(stream, {&send, 1}, {}, "send"));
    requests.push_back(group.exchange(stream, {}, {&recv, 1}, "receive"));
  }
  for (Request& request : requests) request.wait(stream);
  for (int i = 0; i < group.size(); ++i) {
    const int peer = group.rank() % 2 == 0 ? i : group.size() - 1 - i;
    at.expect_same(received[static_cast<size_t>(i)],
                   filled<float>(peer * 10 + group.rank(), kElements), "message");
  }
}

// What NCCL refuses becomes an error that names the operation.
void native_error(Group& group, const OnDevice& at) {
  {
    const auto broken = group.split(0, group.rank());
    Stream stream = at.stream;
    const Tensor data = at.tensor(DType::kF32, {10});
    const Send send{group.rank(), data};
    const std::string message = expect_error(ErrorCode::kCommunication, [&] {
      broken->exchange(stream, {&send, 1}, {}, "nobody receives").wait(stream);
    });
    expect_contains(message, "'nobody receives': NCCL: ");
    group.barrier("after the error");
  }
  group.job().communication_failed = false;
}

using Body = void (*)(Group&, const OnDevice&);
std::vector<Case> cases_of(Device device, std::initializer_list<std::pair<const char*, Body>> all) {
  std::vector<Case> cases;
  for (const auto& [name, body] : all) {
    cases.push_back({name, [device, body](Group& group) { body(group, OnDevice(device)); }});
  }
  return cases;
}

}  // namespace

std::vector<Case> device_cases(Device device) {
  return cases_of(device, {{"device_all_gather", all_gather},
                           {"device_reduce_scatter", reduce_scatter},
                           {"device_all_reduce", all_reduce},
                           {"device_all_to_all", all_to_all},
                           {"device_broadcast", broadcast},
                           {"device_exchange", exchange},
                           {"device_stream_order", stream_order},
                           {"device_in_flight", in_flight},
                           {"device_split", split},
                           {"device_host_values", host_values}});
}

std::vector<Case> native_cases(Device device) {
  return cases_of(device, {{"native_joins_exchanges", native_joins_exchanges},
                           {"native_deadline", native_deadline},
                           {"native_error", native_error}});
}

std::vector<Case> staging_cases(Device device) {
  return cases_of(device, {{"staged_order", staged_order},
                           {"staged_self_later", staged_self_later},
                           {"staged_reuse", staged_reuse},
                           {"staged_failures", staged_failures}});
}

}  // namespace longhaul::dist::testing
