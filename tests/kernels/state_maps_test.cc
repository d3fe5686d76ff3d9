// Compositions of affine maps, against applying one map after the other.
#include "kernels/state_maps.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace longhaul::kernels {
namespace {

constexpr int64_t kRows = 2, kHeads = 3, kDim = 4, kWidth = 5, kState = kDim * kWidth;
using Values = std::vector<double>;

Values random_values(int64_t count, double low, double high, std::mt19937_64& random) {
  std::uniform_real_distribution<double> uniform(low, high);
  Values values(static_cast<size_t>(count));
  for (double& value : values) value = uniform(random);
  return values;
}

template <class T>
Tensor tensor(const Values& values, int64_t last) {
  Tensor result(dtype_of<T>, {kRows, kHeads, last});
  for (size_t i = 0; i < values.size(); ++i) result.span<T>()[i] = static_cast<T>(values[i]);
  return result;
}

// The factor of state row k in row i of the result.
double factor(StateDecay kind, bool transposed, const double* decay, int64_t i, int64_t k) {
  if (kind == StateDecay::kDense) return decay[transposed ? k * kDim + i : i * kDim + k];
  return i != k ? 0 : std::exp(decay[kind == StateDecay::kScalar ? 0 : i]);
}

// One map of all: state after it.
Values apply(StateDecay kind, bool transposed, const double* decay, const double* sums,
             const Values& state) {
  Values result(sums, sums + kState);
  for (int64_t i = 0; i < kDim; ++i) {
    for (int64_t k = 0; k < kDim; ++k) {
      for (int64_t j = 0; j < kWidth; ++j) {
        result[static_cast<size_t>(i * kWidth + j)] +=
            factor(kind, transposed, decay, i, k) * state[static_cast<size_t>(k * kWidth + j)];
      }
    }
  }
  return result;
}

template <class T>
void check(StateDecay kind, bool transposed, bool with_decay, double tolerance) {
  std::mt19937_64 random(7);
  const int64_t elements = decay_elements(kind, kDim), maps = kRows * kHeads;
  const double low = kind == StateDecay::kDense ? -1 : -2, high = -low / 2 - 1;
  Values decays[2], sums[2];
  for (int i : {0, 1}) {
    decays[i] = random_values(maps * elements, low, kind == StateDecay::kDense ? 1 : high, random);
    sums[i] = random_values(maps * kState, -1, 1, random);
  }
  const Tensor earlier_sums = tensor<T>(sums[0], kState), later_sums = tensor<T>(sums[1], kState);
  const Tensor earlier = tensor<T>(decays[0], elements), later = tensor<T>(decays[1], elements);
  ThreadPool pool(2);
  Arena scratch("scratch", 1 << 16);
  const Context ctx{.pool = &pool, .scratch = &scratch};
  // Heads 1 and 2 alone: rows have gaps.
  const auto part = [](const Tensor& t) { return t.view().slice(1, 1, 2); };
  state_maps_compose(ctx, {.kind = kind,
                           .head_dim = kDim,
                           .transposed = transposed,
                           .earlier_sums = part(earlier_sums),
                           .earlier_decay = with_decay ? part(earlier) : TensorView(),
                           .sums = part(later_sums),
                           .decay = part(later)});
  for (int64_t map = 0; map < maps; ++map) {
    const Values start = random_values(kState, -1, 1, random);
    const double* a[] = {&decays[0][static_cast<size_t>(map * elements)],
                         &decays[1][static_cast<size_t>(map * elements)]};
    const double* b[] = {&sums[0][static_cast<size_t>(map * kState)],
                         &sums[1][static_cast<size_t>(map * kState)]};
    Values got_decay, got_sums;
    for (int64_t i = 0; i < elements; ++i) {
      got_decay.push_back(
          static_cast<double>(later.span<T>()[static_cast<size_t>(map * elements + i)]));
    }
    for (int64_t i = 0; i < kState; ++i) {
      got_sums.push_back(
          static_cast<double>(later_sums.span<T>()[static_cast<size_t>(map * kState + i)]));
    }
    Values want;
    if (map % kHeads == 0) {  // not taken part
      want = apply(kind, transposed, a[1], b[1], start);
    } else if (with_decay) {
      want = apply(kind, transposed, a[1], b[1], apply(kind, transposed, a[0], b[0], start));
    } else {
      // A state: whatever entered, the later map is applied to it; its decay stays.
      want = apply(kind, transposed, a[1], b[1], {b[0], b[0] + kState});
      for (int64_t i = 0; i < elements; ++i)
        ASSERT_NEAR(got_decay[static_cast<size_t>(i)], a[1][i], 1e-7);
      std::fill(got_decay.begin(), got_decay.end(),
                kind == StateDecay::kDense ? 0.0 : -std::numeric_limits<double>::infinity());
    }
    const Values got = apply(kind, transposed, got_decay.data(), got_sums.data(), start);
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], tolerance) << map;
  }
}

constexpr StateDecay kKinds[] = {StateDecay::kScalar, StateDecay::kDiagonal, StateDecay::kDense};

TEST(StateMaps, ComposedMapsAreOneAfterTheOther) {
  for (const StateDecay kind : kKinds) {
    for (const bool transposed : {false, true}) {
      for (const bool with_decay : {false, true}) {
        SCOPED_TRACE(static_cast<int>(kind) * 4 + transposed * 2 + with_decay);
        check<double>(kind, transposed, with_decay, 1e-12);
        check<float>(kind, transposed, with_decay, 1e-5);
      }
    }
  }
}

// Whatever is behind a map that forgets, it does not show.
TEST(StateMaps, WhatIsForgottenIsNotLookedAt) {
  const double nan = std::nan("");
  ThreadPool pool(1);
  Arena scratch("scratch", 1 << 16);
  const Context ctx{.pool = &pool, .scratch = &scratch};
  for (const StateDecay kind : kKinds) {
    const int64_t elements = decay_elements(kind, kDim);
    const double nothing =
        kind == StateDecay::kDense ? 0 : -std::numeric_limits<double>::infinity();
    const auto filled = [](int64_t last, double value) {
      return tensor<double>(Values(static_cast<size_t>(kRows * kHeads * last), value), last);
    };
    const Tensor sums = filled(kState, 2), decay = filled(elements, nothing);
    state_maps_compose(ctx, {.kind = kind,
                             .head_dim = kDim,
                             .earlier_sums = filled(kState, nan),
                             .earlier_decay = filled(elements, nan),
                             .sums = sums,
                             .decay = decay});
    for (const double value : sums.span<double>()) EXPECT_EQ(value, 2);
    for (const double value : decay.span<double>()) EXPECT_EQ(value, nothing);
  }
}

TEST(StateMaps, ContradictoryShapesAreRefused) {
  ThreadPool pool(1);
  Arena scratch("scratch", 1 << 16);
  const Context ctx{.pool = &pool, .scratch = &scratch};
  const Tensor sums(DType::kF32, {1, 1, kState}), other(DType::kF32, {1, 1, kState});
  const Tensor decay(DType::kF32, {1, 1, kDim + 1});
  EXPECT_THROW(state_maps_compose(ctx, {.kind = StateDecay::kDiagonal,
                                        .head_dim = kDim,
                                        .earlier_sums = other,
                                        .earlier_decay = {},
                                        .sums = sums,
                                        .decay = decay}),
               Error);
}

}  // namespace
}  // namespace longhaul::kernels
