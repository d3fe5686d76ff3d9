// reduce-scatter and all-reduce: exact values, the order of summation, equality on all ranks.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/core/random.h"
#include "tests/dist/suite.h"

namespace longhaul::dist::testing {
namespace {

// What the sum and the maximum over ranks of predictable(rank, begin + i) have to be.
struct Expected {
  Expected(int ranks, int64_t begin, int64_t n) : sum(static_cast<size_t>(n)), most(sum) {
    for (int rank = 0; rank < ranks; ++rank) {
      for (size_t i = 0; i < sum.size(); ++i) {
        const int value = predictable(rank, begin + static_cast<int64_t>(i));
        sum[i] += value;
        most[i] = std::max(most[i], value);
      }
    }
  }
  std::vector<int> sum, most;
};

template <class T>
void expect_values(std::span<const T> got, const std::vector<int>& expected, int offset = 0) {
  expect(got.size() == expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    if (got[i] == static_cast<T>(expected[i] + offset)) continue;
    expect(false, absl::StrCat("element ", i, " of ", got.size(), " is not ", expected[i]));
  }
}

template <class T>
void reduce_scatter_of(Group& group, int64_t n) {
  Stream stream;
  const int size = group.size();
  const Expected expected(size, group.rank() * n, n);
  const Tensor send = filled<T>(group.rank(), size * n);
  Tensor recv(dtype_of<T>, {n});
  group.reduce_scatter(stream, send, recv, "reduce-scatter").wait(stream);
  expect_values<T>(recv.span<T>(), expected.sum);
  Tensor in_place = filled<T>(group.rank(), size * n);
  const TensorView own = in_place.view().rows(group.rank() * n, n);
  group.reduce_scatter(stream, in_place, own, "reduce-scatter").wait(stream);
  expect_values<T>(own.span<T>(), expected.sum);
}

void reduce_scatter(Group& group) {
  for_each_type([&]<class T>() {
    for (const int64_t n : {0, 1, 5, 1001}) reduce_scatter_of<T>(group, n);
  });
  reduce_scatter_of<float>(group, 300'007);  // two slices
}

template <class T>
void all_reduce_of(Group& group, int64_t n) {
  Stream stream;
  const Expected expected(group.size(), 0, n);
  Tensor sum = filled<T>(group.rank(), n);
  group.all_reduce(stream, sum, ReduceOp::kSum, "all-reduce").wait(stream);
  expect_values<T>(sum.span<T>(), expected.sum);
  // Negative, so that a forgotten rank or a zero from nowhere would win.
  Tensor most = filled<T>(group.rank(), n);
  for (T& value : most.span<T>()) value = static_cast<T>(static_cast<float>(value) - 50.0f);
  group.all_reduce(stream, most, ReduceOp::kMax, "all-reduce").wait(stream);
  expect_values<T>(most.span<T>(), expected.most, -50);
}

void all_reduce(Group& group) {
  const int64_t size = group.size();
  for_each_type([&]<class T>() {
    // Around the number of ranks and around the border between the algorithms.
    for (const int64_t n : {int64_t{0}, int64_t{1}, size - 1, size + 1, int64_t{2048},
                            int64_t{2049}, int64_t{4097}, int64_t{8193}, int64_t{20'011}}) {
      all_reduce_of<T>(group, n);
    }
  });
  all_reduce_of<float>(group, 270'001 * size);  // two slices
}

// Any value, of any size and sign.
float wild(int rank, int64_t i) {
  const RandomKey key{7, static_cast<uint64_t>(rank)};
  const auto index = static_cast<uint64_t>(i);
  return static_cast<float>(random_normal(key, index) *
                            std::pow(10.0, random_uniform({8, key.stream}, index) * 12 - 6));
}

float sum_in_rank_order(int ranks, int64_t i) {
  float sum = wild(0, i);
  for (int rank = 1; rank < ranks; ++rank) sum += wild(rank, i);
  return sum;
}

// Sums equal those made one rank after the other, however they were divided and whatever else was
// reduced with them.
void rank_order(Group& group) {
  Stream stream;
  const int size = group.size();
  constexpr int64_t kElements = 20'001;
  int64_t order_matters = 0;
  for (int64_t i = 0; i < kElements; ++i) {
    float backwards = wild(size - 1, i);
    for (int rank = size - 2; rank >= 0; --rank) backwards += wild(rank, i);
    order_matters += backwards != sum_in_rank_order(size, i);
  }
  expect(size < 3 || order_matters > kElements / 20, "the data could not show another order");

  for (const int64_t n : {int64_t{1}, int64_t{4001}, kElements}) {
    Tensor data(DType::kF32, {n});
    for (int64_t i = 0; i < n; ++i) {
      data.span<float>()[static_cast<size_t>(i)] = wild(group.rank(), i);
    }
    group.all_reduce(stream, data, ReduceOp::kSum, "all-reduce").wait(stream);
    for (int64_t i = 0; i < n; ++i) {
      expect(data.span<float>()[static_cast<size_t>(i)] == sum_in_rank_order(size, i));
    }
  }
  const int64_t n = kElements / size;
  Tensor send(DType::kF32, {size, n}), recv(DType::kF32, {n});
  for (int64_t i = 0; i < size * n; ++i) {
    send.span<float>()[static_cast<size_t>(i)] = wild(group.rank(), i);
  }
  group.reduce_scatter(stream, send, recv, "reduce-scatter").wait(stream);
  for (int64_t i = 0; i < n; ++i) {
    expect(recv.span<float>()[static_cast<size_t>(i)] ==
           sum_in_rank_order(size, group.rank() * n + i));
  }
}

void same_bits(Group& group) {
  Stream stream;
  for (const int64_t n : {3, 100'003}) {
    Tensor data(DType::kF32, {n});
    for (int64_t i = 0; i < n; ++i) {
      data.span<float>()[static_cast<size_t>(i)] = wild(group.rank() + 20, i);
    }
    group.all_reduce(stream, data, ReduceOp::kSum, "all-reduce").wait(stream);
    Tensor all(DType::kF32, {group.size(), n});
    group.all_gather(stream, data, all, "compare").wait(stream);
    for (int rank = 0; rank < group.size(); ++rank) {
      expect(std::memcmp(all.view().rows(rank, 1).raw(), data.view().raw(),
                         static_cast<size_t>(data.view().bytes())) == 0);
    }
  }
}

// 1 + 2^-8 is halfway between two bf16 and goes down to 1: rounding after each rank loses all.
void bf16_rounds_once(Group& group) {
  Stream stream;
  for (const int64_t n : {1, 50'001}) {
    Tensor data(DType::kBF16, {n});
    for (bf16& value : data.span<bf16>()) {
      value = bf16(group.rank() == 0 ? 1.0f : 0x1p-8f);
    }
    group.all_reduce(stream, data, ReduceOp::kSum, "all-reduce").wait(stream);
    const bf16 expected(1.0f + static_cast<float>(group.size() - 1) * 0x1p-8f);
    for (const bf16 value : data.span<bf16>()) expect(value.bits == expected.bits);
  }
}

// A NaN on any rank must reach all: the training loop's check depends on it.
void nan_wins(Group& group) {
  Stream stream;
  for (int owner = 0; owner < group.size(); ++owner) {
    for (const ReduceOp op : {ReduceOp::kSum, ReduceOp::kMax}) {
      Tensor data = filled<float>(group.rank(), 3);
      if (group.rank() == owner) data.span<float>()[1] = std::numeric_limits<float>::quiet_NaN();
      group.all_reduce(stream, data, op, "all-reduce").wait(stream);
      expect(std::isnan(data.span<float>()[1]));
      expect(!std::isnan(data.span<float>()[0]) && !std::isnan(data.span<float>()[2]));
    }
  }
}

}  // namespace

std::vector<Case> reduction_cases() {
  return {{"reduce_scatter", reduce_scatter},
          {"all_reduce", all_reduce},
          {"rank_order", rank_order},
          {"same_bits", same_bits},
          {"bf16_rounds_once", bf16_rounds_once},
          {"nan_wins", nan_wins}};
}

}  // namespace longhaul::dist::testing
