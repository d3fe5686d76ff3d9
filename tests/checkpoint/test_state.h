// A training state for tests: tensors of every dtype with random bits (NaNs among them), cut among
// ranks in several ways.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/state.h"
#include "kernels/core/random.h"
#include "kernels/core/thread_pool.h"

namespace longhaul::checkpoint {

enum class Cut {
  kReplicated,  // every rank holds all
  kEven,
  kGrowing,      // rank r holds about r times as much as rank 1; rank 0 nothing
  kLastOnly,     // all on the last rank; the others have an empty slice
  kOverlapping,  // even, and each part reaches into the next one's
};

struct TestTensor {
  std::string name;
  DType dtype;
  Shape shape;
  Cut cut;
};

inline std::vector<TestTensor> test_tensors() {
  return {{"tokens.weight", DType::kBF16, {37, 13}, Cut::kReplicated},
          {"layers.0.attention.wq", DType::kF32, {5, 7, 3}, Cut::kEven},
          {"adam_m/layers.0.attention.wq", DType::kF64, {5, 7, 3}, Cut::kGrowing},
          {"norm", DType::kF32, {1}, Cut::kEven},  // fewer elements than ranks
          {"counts", DType::kI32, {101}, Cut::kOverlapping},
          {"step", DType::kI64, {3}, Cut::kLastOnly},
          {"scalar", DType::kF64, Shape{}, Cut::kReplicated},
          {"none", DType::kF32, {0, 4}, Cut::kReplicated},
          {"large", DType::kF32, {1500, 1001}, Cut::kEven}};  // several read chunks
}

inline Range part_for(Cut cut, int64_t n, int rank, int ranks) {
  switch (cut) {
    case Cut::kReplicated:
      return {0, n};
    case Cut::kEven:
      return part_of(n, rank, ranks);
    case Cut::kGrowing: {
      const int64_t all = int64_t{ranks} * (ranks - 1) / 2;
      if (all == 0) return {0, n};
      const auto at = [&](int64_t r) { return n * (r * (r - 1) / 2) / all; };
      return {at(rank), at(rank + 1)};
    }
    case Cut::kLastOnly:
      return rank == ranks - 1 ? Range{0, n} : Range{0, 0};
    case Cut::kOverlapping: {
      Range range = part_of(n, rank, ranks);
      range.end = std::min(n, range.end + 5);
      return range;
    }
  }
  return {};
}

struct TestState {
  std::vector<Tensor> memory;
  State state;

  void add(const TestTensor& tensor, Range range) {
    memory.emplace_back(tensor.dtype, Shape{range.size()});
    state.push_back({tensor.name, tensor.shape, range.begin, range.end, memory.back()});
  }
};

// All zero.
inline TestState make_state(int rank, int ranks,
                            const std::vector<TestTensor>& tensors = test_tensors()) {
  TestState result;
  for (const TestTensor& tensor : tensors) {
    result.add(tensor, part_for(tensor.cut, tensor.shape.elements(), rank, ranks));
  }
  return result;
}

inline uint64_t test_bits(const Slice& slice, int64_t element, uint64_t seed) {
  return random_u64({seed, stream_of(slice.name)}, static_cast<uint64_t>(element));
}

inline void fill(const State& state, uint64_t seed) {
  for (const Slice& slice : state) {
    const auto size = static_cast<size_t>(size_of(slice.data.dtype()));
    for (int64_t i = slice.begin; i < slice.end; ++i) {
      const uint64_t bits = test_bits(slice, i, seed);
      std::memcpy(slice.data.raw() + static_cast<size_t>(i - slice.begin) * size, &bits, size);
    }
  }
}

// Bit by bit.
inline void expect_filled(const State& state, uint64_t seed) {
  for (const Slice& slice : state) {
    const auto size = static_cast<size_t>(size_of(slice.data.dtype()));
    for (int64_t i = slice.begin; i < slice.end; ++i) {
      const uint64_t bits = test_bits(slice, i, seed);
      ASSERT_EQ(
          std::memcmp(slice.data.raw() + static_cast<size_t>(i - slice.begin) * size, &bits, size),
          0)
          << slice.name << "[" << i << "]";
    }
  }
}

inline const std::map<std::string, std::string>& test_model() {
  static const std::map<std::string, std::string> model{{"layers", "2"}, {"width", "64"}};
  return model;
}

}  // namespace longhaul::checkpoint
