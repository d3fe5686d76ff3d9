// The counters equal the closed forms of dist/ALGORITHMS.md.
#include <absl/strings/str_cat.h>

#include "kernels/core/thread_pool.h"
#include "tests/dist/suite.h"

namespace longhaul::dist::testing {
namespace {

void expect_bytes(Group& group, std::string_view what, int64_t operations, int64_t sent,
                  int64_t received) {
  const Traffic::Counter& counter = group.traffic()[what];
  expect(
      counter.operations == operations && counter.sent_bytes == sent &&
          counter.received_bytes == received,
      absl::StrCat(std::string(what), ": ", counter.operations, " operations, ", counter.sent_bytes,
                   " of ", sent, " sent, ", counter.received_bytes, " of ", received, " received"));
}

void traffic(Group& group) {
  Stream stream;
  const int64_t size = group.size(), others = size - 1, rank = group.rank();
  group.traffic().reset();

  for (const int64_t n : {0, 3, 300'001}) {
    const std::string name = absl::StrCat("gather ", n);
    Tensor piece(DType::kF32, {n}), all(DType::kF32, {size * n});
    group.all_gather(stream, piece, all, name).wait(stream);
    expect_bytes(group, name, 1, others * n * 4, others * n * 4);
    const std::string scatter = absl::StrCat("scatter ", n);
    for (int repeat = 0; repeat < 2; ++repeat) {
      group.reduce_scatter(stream, all, piece, scatter).wait(stream);
    }
    expect_bytes(group, scatter, 2, 2 * others * n * 4, 2 * others * n * 4);
  }

  Tensor small(DType::kF64, {2048}), large(DType::kF64, {100'003});  // 16 KiB is the border
  group.all_reduce(stream, small, ReduceOp::kSum, "small").wait(stream);
  expect_bytes(group, "small", 1, others * 16384, others * 16384);
  group.all_reduce(stream, large, ReduceOp::kSum, "large").wait(stream);
  const int64_t own = part_of(100'003, rank, size).size();
  const int64_t both_ways = (100'003 - own + others * own) * 8;
  expect_bytes(group, "large", 1, both_ways, both_ways);

  // To oneself is not traffic.
  std::vector<Send> sends;
  std::vector<Recv> recvs;
  std::vector<Tensor> buffers;
  for (int peer = 0; peer < size; ++peer) {
    buffers.emplace_back(DType::kI32, Shape{rank + peer});
    sends.push_back({peer, buffers.back()});
    buffers.emplace_back(DType::kI32, Shape{rank + peer});
    recvs.push_back({peer, buffers.back()});
  }
  group.exchange(stream, sends, recvs, "exchange").wait(stream);
  const int64_t to_others = (others * rank + size * others / 2 - rank) * 4;
  expect_bytes(group, "exchange", 1, to_others, to_others);
  std::vector<ConstTensorView> to;
  std::vector<TensorView> from;
  for (size_t i = 0; i < sends.size(); ++i) {
    to.push_back(sends[i].data);
    from.push_back(recvs[i].data);
  }
  group.all_to_all(stream, to, from, "all to all").wait(stream);
  expect_bytes(group, "all to all", 1, to_others, to_others);

  // Each rank but the root receives once; who sends is the tree's affair.
  group.broadcast(stream, large, 0, "broadcast").wait(stream);
  const int64_t large_bytes = 100'003 * 8;
  const Traffic::Counter tree = group.traffic()["broadcast"];
  expect(tree.received_bytes == (rank == 0 ? 0 : large_bytes));
  expect(group.sum(static_cast<double>(tree.sent_bytes), "sum") ==
         static_cast<double>(others * large_bytes));

  group.barrier("barrier");
  expect_bytes(group, "barrier", 1, 0, 0);

  const auto total = group.traffic().total();
  int64_t sent = 0;
  double waited = 0;
  for (const auto& [what, counter] : group.traffic().counters()) {
    sent += counter.sent_bytes;
    waited += counter.waited_seconds;
  }
  expect(total.sent_bytes == sent && total.waited_seconds == waited && waited > 0);
}

// What a rank waits is counted where it waits.
void waiting(Group& group) {
  group.traffic().reset();
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
  group.wait_until([&] { return std::chrono::steady_clock::now() >= end; }, "slow");
  expect(group.traffic()["slow"].waited_seconds >= 0.019);
  expect(group.traffic()["slow"].operations == 0);
}

}  // namespace

std::vector<Case> traffic_cases() { return {{"traffic", traffic}, {"waiting", waiting}}; }

}  // namespace longhaul::dist::testing
