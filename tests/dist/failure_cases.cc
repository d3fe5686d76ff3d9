// Deadlines and messages that do not fit each other.
#include <absl/strings/str_cat.h>

#include <functional>

#include "tests/dist/suite.h"

namespace longhaul::dist::testing {
namespace {

// A rank that waits for what may not come, with a deadline of its own.
class Impatience {
 public:
  explicit Impatience(Job& job, std::chrono::milliseconds deadline = std::chrono::milliseconds(100))
      : job_(job), before_(job.deadline) {
    job_.deadline = deadline;
    job_.step = 17;
    job_.place = "layer 2 attention forward";
  }
  ~Impatience() {
    job_.deadline = before_;
    job_.step = -1;
    job_.place.clear();
    job_.communication_failed = false;
  }
  Impatience(const Impatience&) = delete;
  Impatience& operator=(const Impatience&) = delete;

 private:
  Job& job_;
  const std::chrono::milliseconds before_;
};

// The last rank never comes to `operation`; all others, who need it, say so.
void expect_missing_last(Group& group, std::string_view what,
                         const std::function<void(Group& group)>& operation) {
  const auto broken = group.split(0, group.rank());
  const int last = group.size() - 1;
  if (group.rank() != last) {
    const Impatience impatience(group.job());
    const std::string message =
        expect_error(ErrorCode::kCommunication, [&] { operation(*broken); });
    expect_contains(message,
                    absl::StrCat("rank ", group.world_rank(group.rank()), " waited 0.1 s"));
    expect_contains(message, "at step 17 in layer 2 attention forward");
    expect_contains(message, absl::StrCat("'", std::string(what), "'"));
    // The last of those that are missing; another one may be slow.
    expect_contains(message, " from rank");
    expect_contains(message, absl::StrCat(" ", group.world_rank(last), ": the peer is dead"));
    expect_contains(message, "parallel.timeout_seconds");
  }
  group.barrier("after the deadline");
}

void deadline(Group& group) {
  if (group.size() == 1) return;
  Stream stream;
  const int last = group.size() - 1;
  Tensor data(DType::kF32, {50'000});
  expect_missing_last(group, "ring kv", [&](Group& broken) {
    const Recv recv{last, data};
    broken.exchange(stream, {}, {&recv, 1}, "ring kv").wait(stream);
  });
  expect_missing_last(group, "gradients", [&](Group& broken) {
    broken.all_reduce(stream, data, ReduceOp::kSum, "gradients").wait(stream);
  });
  expect_missing_last(group, "weights", [&](Group& broken) {
    Tensor all(DType::kF32, {broken.size() * int64_t{50'000}});
    broken.all_gather(stream, data, all, "weights").wait(stream);
  });
  expect_missing_last(group, "window", [&](Group& broken) {
    broken.wait_until([] { return false; }, "window",
                      [&] { return absl::StrCat("rank ", broken.world_rank(last)); });
  });
}

// The receiver finds out; the sender may or may not, but has to be there when the receiver comes,
// on a busy machine too.
void sizes_differ(Group& group) {
  if (group.size() == 1) return;
  Stream stream;
  // Elements sent and expected; with tests' small chunks also whole multiples of a chunk.
  for (const auto& [sent, expected] : std::vector<std::pair<int64_t, int64_t>>{{1, 2},
                                                                               {2, 1},
                                                                               {0, 1},
                                                                               {1, 0},
                                                                               {125, 250},
                                                                               {250, 125},
                                                                               {375, 250},
                                                                               {251, 250},
                                                                               {1000, 1001}}) {
    const auto broken = group.split(0, group.rank());
    Tensor from(DType::kF64, {sent}), to(DType::kF64, {expected});
    if (group.rank() == 0) {
      const Send send{1, from};
      const auto error = attempt([&] {
        const Impatience impatience(group.job(), std::chrono::seconds(10));
        broken->exchange(stream, {&send, 1}, {}, "odd sizes").wait(stream);
      });
      group.job().communication_failed = false;
      expect(!error || error->code() == ErrorCode::kCommunication);
    } else if (group.rank() == 1) {
      const Recv recv{0, to};
      const std::string message = expect_error(ErrorCode::kCommunication, [&] {
        broken->exchange(stream, {}, {&recv, 1}, "odd sizes").wait(stream);
      });
      group.job().communication_failed = false;
      expect_contains(message, "'odd sizes'");
      expect_contains(message, "from rank ");
      expect_contains(message, "the ranks disagree about the operation");
    }
    group.barrier("after the mismatch");
  }
}

// An error leaves the rank's other operations to be given up, not waited for.
void gives_up_others(Group& group) {
  if (group.size() == 1) return;
  Stream stream;
  const auto broken = group.split(0, group.rank());
  if (group.rank() == 0) {
    const Impatience impatience(group.job());
    Tensor a(DType::kF32, {10}), b(DType::kF32, {10});
    const Recv recv_a{1, a}, recv_b{1, b};
    Request first = broken->exchange(stream, {}, {&recv_a, 1}, "first");
    Request second = broken->exchange(stream, {}, {&recv_b, 1}, "second");
    const std::string message =
        expect_error(ErrorCode::kCommunication, [&] { second.wait(stream); });
    expect_contains(message, "'second'");
  }
  group.barrier("after giving up");
}

}  // namespace

std::vector<Case> failure_cases() {
  return {
      {"deadline", deadline}, {"sizes_differ", sizes_differ}, {"gives_up_others", gives_up_others}};
}

}  // namespace longhaul::dist::testing
