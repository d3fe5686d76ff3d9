// Compositions of affine maps, against applying one map after the other.
#include "kernels/state_maps.h"

#include <random>

#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr int64_t kRows = 2, kHeads = 3, kDim = 4, kWidth = 5, kState = kDim * kWidth;
using Values = std::vector<double>;

Values random_values(int64_t count, double low, double high, std::mt19937_64& random) {
  std::uniform_real_distribution<double> uniform(low, high);
  Values values(static_cast<size_t>(count));
  for (double& value : values) value = uniform(random);
  return values;
}

DeviceTensor tensor(DType dtype, const Values& of, int64_t last) {
  DeviceTensor result(dtype, {kRows, kHeads, last});
  set(result, [&](int64_t n) { return of[static_cast<size_t>(n)]; });
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

void check(const StateMapsKernel& row, StateDecay kind, bool transposed, bool with_decay) {
  const double tolerance = row.dtype == DType::kF64 ? 1e-12 : 1e-5;
  std::mt19937_64 random(7);
  const int64_t elements = decay_elements(kind, kDim), maps = kRows * kHeads;
  const double low = kind == StateDecay::kDense ? -1 : -2, high = -low / 2 - 1;
  Values decays[2], sums[2];
  for (int i : {0, 1}) {
    decays[i] = random_values(maps * elements, low, kind == StateDecay::kDense ? 1 : high, random);
    sums[i] = random_values(maps * kState, -1, 1, random);
  }
  const DeviceTensor earlier_sums = tensor(row.dtype, sums[0], kState),
                     later_sums = tensor(row.dtype, sums[1], kState),
                     earlier = tensor(row.dtype, decays[0], elements),
                     later = tensor(row.dtype, decays[1], elements);
  Rig rig(2);
  // Heads 1 and 2 alone: rows have gaps.
  const auto part = [](const Tensor& t) { return t.view().slice(1, 1, 2); };
  rig.run([&](const Context& ctx) {
    row.compose(ctx, {.kind = kind,
                      .head_dim = kDim,
                      .transposed = transposed,
                      .earlier_sums = part(earlier_sums),
                      .earlier_decay = with_decay ? part(earlier) : TensorView(),
                      .sums = part(later_sums),
                      .decay = part(later)});
  });
  const Values all_decays = values(later), all_sums = values(later_sums);
  for (int64_t map = 0; map < maps; ++map) {
    const Values start = random_values(kState, -1, 1, random);
    const double* a[] = {&decays[0][static_cast<size_t>(map * elements)],
                         &decays[1][static_cast<size_t>(map * elements)]};
    const double* b[] = {&sums[0][static_cast<size_t>(map * kState)],
                         &sums[1][static_cast<size_t>(map * kState)]};
    const auto of_map = [map](const Values& all, int64_t count) {
      return Values(all.begin() + map * count, all.begin() + (map + 1) * count);
    };
    Values got_decay = of_map(all_decays, elements);
    const Values got_sums = of_map(all_sums, kState);
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
  for_each_row(&Backend::state_maps, [](const StateMapsKernel& row) {
    for (const StateDecay kind : kKinds) {
      for (const bool transposed : {false, true}) {
        for (const bool with_decay : {false, true}) {
          SCOPED_TRACE(static_cast<int>(kind) * 4 + transposed * 2 + with_decay);
          check(row, kind, transposed, with_decay);
        }
      }
    }
  });
}

// Matrices larger than a tile of a kernel, against sums in f64.
TEST(StateMaps, MatricesOfEverySize) {
  for_each_row(&Backend::state_maps, [](const StateMapsKernel& row) {
    for (const auto& [dim, width] : std::vector<std::pair<int64_t, int64_t>>{{1, 7}, {33, 70}}) {
      for (const bool transposed : {false, true}) {
        const DeviceTensor earlier = random(row.dtype, {1, 1, dim * width}, 1),
                           earlier_decay = random(row.dtype, {1, 1, dim * dim}, 2),
                           sums = random(row.dtype, {1, 1, dim * width}, 3),
                           decay = random(row.dtype, {1, 1, dim * dim}, 4);
        const Values b = values(earlier), a = values(earlier_decay), m = values(decay);
        Values want_sums = values(sums), want_decay(static_cast<size_t>(dim * dim));
        const auto at = [dim](int64_t i, int64_t j) { return static_cast<size_t>(i * dim + j); };
        for (int64_t i = 0; i < dim; ++i) {
          for (int64_t k = 0; k < dim; ++k) {
            const double factor = m[transposed ? at(k, i) : at(i, k)];
            for (int64_t j = 0; j < width; ++j) {
              want_sums[static_cast<size_t>(i * width + j)] +=
                  factor * b[static_cast<size_t>(k * width + j)];
            }
            for (int64_t j = 0; j < dim; ++j) {
              want_decay[at(i, j)] +=
                  transposed ? a[at(i, k)] * m[at(k, j)] : m[at(i, k)] * a[at(k, j)];
            }
          }
        }
        Rig rig(2);
        rig.run([&](const Context& ctx) {
          row.compose(ctx, {.kind = StateDecay::kDense,
                            .head_dim = dim,
                            .transposed = transposed,
                            .earlier_sums = earlier,
                            .earlier_decay = earlier_decay,
                            .sums = sums,
                            .decay = decay});
        });
        expect_near(sums, want_sums, 10 * epsilon(row.dtype), "sums");
        expect_near(decay, want_decay, 10 * epsilon(row.dtype), "decay");
      }
    }
  });
}

// Whatever is behind a map that forgets, it does not show.
TEST(StateMaps, WhatIsForgottenIsNotLookedAt) {
  for_each_row(&Backend::state_maps, [](const StateMapsKernel& row) {
    for (const StateDecay kind : kKinds) {
      const Shape sums_shape{kRows, kHeads, kState},
          decay_shape{kRows, kHeads, decay_elements(kind, kDim)};
      const double nothing =
          kind == StateDecay::kDense ? 0 : -std::numeric_limits<double>::infinity();
      const DeviceTensor sums = filled(row.dtype, sums_shape, 2),
                         decay = filled(row.dtype, decay_shape, nothing),
                         earlier_sums = poisoned(row.dtype, sums_shape),
                         earlier_decay = poisoned(row.dtype, decay_shape);
      Rig rig(1);
      rig.run([&](const Context& ctx) {
        row.compose(ctx, {.kind = kind,
                          .head_dim = kDim,
                          .earlier_sums = earlier_sums,
                          .earlier_decay = earlier_decay,
                          .sums = sums,
                          .decay = decay});
      });
      for (const double value : values(sums)) EXPECT_EQ(value, 2);
      for (const double value : values(decay)) EXPECT_EQ(value, nothing);
    }
  });
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
}  // namespace longhaul::kernels::testing
