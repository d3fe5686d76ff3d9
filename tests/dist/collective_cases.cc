// all-gather, all-to-all, broadcast, barrier, and several at once.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <chrono>

#include "tests/dist/suite.h"

namespace longhaul::dist::testing {
namespace {

template <class T>
void expect_piece(std::span<const T> piece, int rank) {
  for (size_t i = 0; i < piece.size(); ++i) {
    if (piece[i] == static_cast<T>(predictable(rank, static_cast<int64_t>(i)))) continue;
    expect(false, absl::StrCat("element ", i, " of rank ", rank));
  }
}

void all_gather(Group& group) {
  Stream stream;
  for_each_type([&]<class T>() {
    for (const int64_t n : {0, 1, 3, 1000, 16385}) {
      const Tensor send = filled<T>(group.rank(), n);
      Tensor recv(dtype_of<T>, {group.size() * n});
      group.all_gather(stream, send, recv, "gather").wait(stream);
      Tensor in_place(dtype_of<T>, {group.size(), n});
      const TensorView own = in_place.view().rows(group.rank(), 1);
      std::copy_n(send.span<T>().data(), n, own.data<T>());
      group.all_gather(stream, own, in_place, "gather").wait(stream);
      for (int rank = 0; rank < group.size(); ++rank) {
        expect_piece<T>(recv.view().rows(rank * n, n).span<T>(), rank);
        expect_piece<T>(in_place.view().rows(rank, 1).span<T>(), rank);
      }
    }
  });
}

void all_to_all(Group& group) {
  Stream stream;
  // Uneven, with empty pairs; the messages of a pair differ by direction.
  const auto count = [](int from, int to) { return int64_t{(from * 3 + to * 5) % 7} * 411; };
  for_each_type([&]<class T>() {
    std::vector<Tensor> send, recv;
    std::vector<ConstTensorView> send_views;
    std::vector<TensorView> recv_views;
    for (int peer = 0; peer < group.size(); ++peer) {
      send.push_back(filled<T>(group.rank() * 10 + peer, count(group.rank(), peer)));
      recv.emplace_back(dtype_of<T>, Shape{count(peer, group.rank())});
      send_views.push_back(send.back());
      recv_views.push_back(recv.back());
    }
    group.all_to_all(stream, send_views, recv_views, "all to all").wait(stream);
    for (int peer = 0; peer < group.size(); ++peer) {
      expect_piece<T>(recv[static_cast<size_t>(peer)].template span<T>(), peer * 10 + group.rank());
    }
  });
}

void broadcast(Group& group) {
  Stream stream;
  for_each_type([&]<class T>() {
    for (int root = 0; root < group.size(); ++root) {
      for (const int64_t n : {0, 1, 5, 20011}) {
        Tensor data(dtype_of<T>, {n});
        if (group.rank() == root) data = filled<T>(root + 3, n);
        group.broadcast(stream, data, root, "broadcast").wait(stream);
        expect_piece<T>(data.span<T>(), root + 3);
      }
    }
  });
}

// Ranks of one machine share a clock: nobody leaves before the last one has come.
void barrier(Group& group) {
  Stream stream;
  const auto now = [] { return std::chrono::steady_clock::now().time_since_epoch().count(); };
  for (int round = 0; round < 20; ++round) {
    group.wait_until(
        [end = now() + (round * 7 + group.rank() * 3) % 5 * 200'000, &now] { return now() > end; },
        "delay");
    int64_t before = now();
    group.barrier("barrier");
    const int64_t after = now();
    expect(group.max(before, "last to come") <= after);
  }
}

// Operations of several stages wait for each other's later stages; every rank waits in an order of
// its own.
void concurrent(Group& group) {
  Stream stream;
  constexpr int64_t kElements = 30'011;
  const int size = group.size(), rank = group.rank();
  for (int round = 0; round < 4; ++round) {
    Tensor reduced = filled<float>(rank, kElements);
    Tensor other = filled<double>(rank + 1, kElements);
    const Tensor pieces = filled<float>(rank, size * kElements);
    Tensor scattered(DType::kF32, {kElements});
    Tensor text = filled<int32_t>(rank, kElements);
    const Tensor mine = filled<int64_t>(rank, 77);
    Tensor gathered(DType::kI64, {size * 77});
    Tensor arrived(DType::kI64, {77});
    const Send send{(rank + 1) % size, mine};
    const Recv recv{(rank - 1 + size) % size, arrived};

    std::vector<Request> requests;
    requests.push_back(group.all_reduce(stream, reduced, ReduceOp::kSum, "a"));
    requests.push_back(group.all_reduce(stream, other, ReduceOp::kMax, "b"));
    // Exchanges may come at different points of the ranks' programs.
    if (rank % 2 == 0) requests.push_back(group.exchange(stream, {&send, 1}, {&recv, 1}, "c"));
    requests.push_back(group.reduce_scatter(stream, pieces, scattered, "d"));
    requests.push_back(group.broadcast(stream, text, round % size, "e"));
    if (rank % 2 != 0) requests.push_back(group.exchange(stream, {&send, 1}, {&recv, 1}, "c"));
    requests.push_back(group.all_gather(stream, mine, gathered, "f"));
    std::rotate(requests.begin(), requests.begin() + (rank + round) % 6, requests.end());
    for (Request& request : requests) request.wait(stream);

    for (int64_t i = 0; i < kElements; i += 101) {
      int sum = 0, most = 0, piece_sum = 0;
      for (int r = 0; r < size; ++r) {
        sum += predictable(r, i);
        most = std::max(most, predictable(r + 1, i));
        piece_sum += predictable(r, rank * kElements + i);
      }
      const size_t at = static_cast<size_t>(i);
      expect(reduced.span<float>()[at] == static_cast<float>(sum));
      expect(other.span<double>()[at] == most);
      expect(scattered.span<float>()[at] == static_cast<float>(piece_sum));
      expect(text.span<int32_t>()[at] == predictable(round % size, i));
    }
    expect_piece<int64_t>(arrived.span<int64_t>(), recv.peer);
    for (int r = 0; r < size; ++r) {
      expect_piece<int64_t>(gathered.view().rows(r * 77, 77).span<int64_t>(), r);
    }
  }
}

}  // namespace

std::vector<Case> collective_cases() {
  return {{"all_gather", all_gather},
          {"all_to_all", all_to_all},
          {"broadcast", broadcast},
          {"barrier", barrier},
          {"concurrent", concurrent}};
}

}  // namespace longhaul::dist::testing
