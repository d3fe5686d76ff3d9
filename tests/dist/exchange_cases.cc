// Point-to-point messages.
#include <absl/strings/str_cat.h>

#include <algorithm>

#include "tests/dist/suite.h"

namespace longhaul::dist::testing {
namespace {

// A message knows its sender, its receiver and its number.
Tensor message(int from, int to, int number, int64_t n) {
  Tensor tensor(DType::kI64, {n});
  for (int64_t i = 0; i < n; ++i) {
    tensor.span<int64_t>()[static_cast<size_t>(i)] = ((from * 100 + to) * 1000 + number) * n + i;
  }
  return tensor;
}

void expect_message(const Tensor& got, int from, int to, int number) {
  const Tensor expected = message(from, to, number, got.shape()[0]);
  expect(std::ranges::equal(got.span<int64_t>(), expected.span<int64_t>()),
         absl::StrCat("message ", number, " from rank ", from, " to rank ", to));
}

// Several messages for every pair, oneself included, of different sizes, also empty.
void everyone(Group& group) {
  Stream stream;
  const auto size_of_message = [](int number) {
    return int64_t{number} * number * 700 * (number % 4);
  };
  constexpr int kMessages = 6;
  std::vector<Tensor> sent, received;
  std::vector<Send> sends;
  std::vector<Recv> recvs;
  for (int number = 0; number < kMessages; ++number) {
    for (int peer = 0; peer < group.size(); ++peer) {
      sent.push_back(message(group.rank(), peer, number, size_of_message(number)));
      received.emplace_back(DType::kI64, Shape{size_of_message(number)});
      sends.push_back({peer, sent.back()});
      recvs.push_back({peer, received.back()});
    }
  }
  group.exchange(stream, sends, recvs, "exchange").wait(stream);
  size_t next = 0;
  for (int number = 0; number < kMessages; ++number) {
    for (int peer = 0; peer < group.size(); ++peer) {
      expect_message(received[next++], peer, group.rank(), number);
    }
  }
}

// Equal sizes, so that only the order tells messages apart; waited for from the last to the first.
void many_in_flight(Group& group) {
  Stream stream;
  constexpr int kExchanges = 60;
  const int next = (group.rank() + 1) % group.size();
  const int previous = (group.rank() + group.size() - 1) % group.size();
  std::vector<Tensor> sent, received;
  std::vector<Request> requests;
  for (int number = 0; number < kExchanges; ++number) {
    sent.push_back(message(group.rank(), next, number, 5001));
    received.emplace_back(DType::kI64, Shape{5001});
    const Send send{next, sent.back()};
    const Recv recv{previous, received.back()};
    requests.push_back(group.exchange(stream, {&send, 1}, {&recv, 1}, "ring"));
  }
  for (size_t i = requests.size(); i-- > 0;) requests[i].wait(stream);
  for (int number = 0; number < kExchanges; ++number) {
    expect_message(received[static_cast<size_t>(number)], previous, group.rank(), number);
  }
}

// Sends and receives of oneself in different exchanges.
void self_later(Group& group) {
  Stream stream;
  const Tensor sent = message(group.rank(), group.rank(), 1, 50'000);
  Tensor received(DType::kI64, {50'000});
  const Send send{group.rank(), sent};
  const Recv recv{group.rank(), received};
  Request first = group.exchange(stream, {&send, 1}, {}, "to myself");
  group.exchange(stream, {}, {&recv, 1}, "from myself").wait(stream);
  first.wait(stream);
  expect_message(received, group.rank(), group.rank(), 1);
}

// The even rank waits for something that the odd one does only after its large message has left:
// the message has to move although nobody tests its receive.
void moves_while_waiting_for_others(Group& group) {
  Stream stream;
  const int peer = group.rank() ^ 1;
  if (peer >= group.size()) return;
  constexpr int64_t kLarge = 200'000;
  if (group.rank() % 2 == 0) {
    Tensor large(DType::kI64, {kLarge}), small(DType::kI64, {1});
    const Recv recv_large{peer, large}, recv_small{peer, small};
    Request pending = group.exchange(stream, {}, {&recv_large, 1}, "large");
    Request after = group.exchange(stream, {}, {&recv_small, 1}, "small");
    group.wait_until([&] { return after.test(); }, "small");
    expect_message(small, peer, group.rank(), 2);
    pending.wait(stream);
    expect_message(large, peer, group.rank(), 1);
  } else {
    const Tensor large = message(group.rank(), peer, 1, kLarge);
    const Tensor small = message(group.rank(), peer, 2, 1);
    const Send send_large{peer, large}, send_small{peer, small};
    group.exchange(stream, {&send_large, 1}, {}, "large").wait(stream);
    group.exchange(stream, {&send_small, 1}, {}, "small").wait(stream);
  }
}

void nothing(Group& group) {
  Stream stream;
  Request request = group.exchange(stream, {}, {}, "nothing");
  expect(request.test() && request.done() && request.test());
  request.wait(stream);
}

}  // namespace

std::vector<Case> exchange_cases() {
  return {{"exchange_everyone", everyone},
          {"exchange_many_in_flight", many_in_flight},
          {"exchange_self_later", self_later},
          {"exchange_moves_while_waiting", moves_while_waiting_for_others},
          {"exchange_nothing", nothing}};
}

}  // namespace longhaul::dist::testing
