#include "kernels/linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr double kGradScale = 0.37;

struct Truth {
  std::vector<double> loss, dx, dweight;
};

Truth truth(const std::vector<double>& x, const std::vector<double>& w,
            const std::vector<int32_t>& labels, size_t channels, size_t vocabulary) {
  Truth t;
  t.loss.assign(labels.size(), 0.0);
  t.dx.assign(x.size(), 0.0);
  t.dweight.assign(w.size(), 0.0);
  for (size_t r = 0; r < labels.size(); ++r) {
    if (labels[r] < 0) continue;
    std::vector<double> p;
    for (size_t o = 0; o < vocabulary; ++o) {
      double logit = 0;
      for (size_t c = 0; c < channels; ++c) logit += x[r * channels + c] * w[o * channels + c];
      p.push_back(logit);
    }
    const double max = *std::max_element(p.begin(), p.end());
    double sum = 0;
    for (double& v : p) sum += v = std::exp(v - max);
    const auto label = static_cast<size_t>(labels[r]);
    t.loss[r] = -std::log(p[label] / sum);
    for (size_t o = 0; o < vocabulary; ++o) {
      const double d = kGradScale * (p[o] / sum - (o == label ? 1.0 : 0.0));
      for (size_t c = 0; c < channels; ++c) {
        t.dx[r * channels + c] += d * w[o * channels + c];
        t.dweight[o * channels + c] += d * x[r * channels + c];
      }
    }
  }
  return t;
}

struct Case {
  int64_t tokens, channels, vocabulary, tile_rows;
};

std::vector<int32_t> labels_for(const Case& s) {
  std::vector<int32_t> labels;
  for (int64_t t = 0; t < s.tokens; ++t) {
    labels.push_back(t % 4 == 1 ? -1 : static_cast<int32_t>(t * 31 % s.vocabulary));
  }
  return labels;
}

void expect_row(const LinearCrossEntropyKernel& row, const Case& s, int threads) {
  SCOPED_TRACE(::testing::Message() << s.tokens << " tokens, tile " << s.tile_rows);
  const DType acc = accumulator(row.dtype);
  Rig rig(threads);
  Gapped x(row.dtype, {s.tokens, s.channels}), weight(row.dtype, {s.vocabulary, s.channels});
  Gapped dx(row.dtype, {s.tokens, s.channels});
  fill_random(x, 1);
  fill_random(weight, 2, 0.4);
  const std::vector<int32_t> list = labels_for(s);
  const DeviceTensor labels = integers(list), loss = poisoned(acc, {s.tokens});
  const DeviceTensor dweight = random(acc, {s.vocabulary, s.channels}, 3);
  const Truth t = truth(values(x), values(weight), list, static_cast<size_t>(s.channels),
                        static_cast<size_t>(s.vocabulary));
  std::vector<double> expected_dweight = values(dweight);
  for (size_t i = 0; i < expected_dweight.size(); ++i) expected_dweight[i] += t.dweight[i];
  LinearCrossEntropy args{.x = x,
                          .weight = weight,
                          .labels = labels,
                          .row_loss = loss,
                          .tile_rows = s.tile_rows,
                          .with_gradients = true,
                          .grad_scale = kGradScale,
                          .dx = dx,
                          .dweight = dweight};
  rig.run([&](const Context& ctx) { row.run(ctx, args); });
  // Logits of a few units carry eps sqrt(channels) of that, which exp makes relative; bf16 rounds
  // each d(logit) once more before the products.
  const double tolerance = 64 * epsilon(acc) + (row.dtype == DType::kBF16 ? epsilon(row.dtype) : 0);
  expect_near(loss, t.loss, 64 * epsilon(acc), "row_loss");
  expect_near(dx, t.dx, tolerance + epsilon(row.dtype), "dx");
  expect_near(dweight, expected_dweight, tolerance, "dweight");
  for (size_t r = 0; r < list.size(); ++r) {
    if (list[r] >= 0) continue;
    EXPECT_EQ(values(loss)[r], 0.0);
  }
  EXPECT_TRUE(dx.gaps_intact());

  // The loss alone is the same loss.
  const DeviceTensor alone = poisoned(acc, {s.tokens});
  rig.run([&](const Context& ctx) {
    row.run(
        ctx,
        {.x = x, .weight = weight, .labels = labels, .row_loss = alone, .tile_rows = s.tile_rows});
  });
  EXPECT_TRUE(same_bits(loss, alone));
}

void for_each_on_every_set(const std::function<void(const LinearCrossEntropyKernel&)>& f) {
  for_each_row_and_instruction_set(&Backend::linear_cross_entropy, f);
}

TEST(LinearCrossEntropy, AgainstWholeLogits) {
  for_each_row(&Backend::linear_cross_entropy, [](const LinearCrossEntropyKernel& row) {
    for (const Case& s : std::vector<Case>{{37, 24, 61, 0},
                                           {37, 24, 61, 8},
                                           {37, 24, 61, 1},
                                           {32, 16, 1000, 16},
                                           {1, 8, 2, 0},
                                           {0, 8, 5, 0}}) {
      for (int threads : numbers_of_threads({1, 3})) expect_row(row, s, threads);
    }
  });
}

TEST(LinearCrossEntropy, EveryInstructionSet) {
  for_each_on_every_set([](const LinearCrossEntropyKernel& row) {
    expect_row(row, {19, 16, 101, 5}, 2);
    for (int64_t vocabulary : short_lengths()) expect_row(row, {5, 3, vocabulary, 0}, 1);
  });
}

TEST(LinearCrossEntropy, FiniteDifferences) {
  for_each_row(&Backend::linear_cross_entropy, [](const LinearCrossEntropyKernel& row) {
    if (row.dtype != DType::kF64) return;
    Rig rig(1);
    const DeviceTensor x = random(row.dtype, {5, 6}, 1), w = random(row.dtype, {7, 6}, 2);
    const DeviceTensor labels = integers({3, -1, 0, 6, 2});
    const DeviceTensor loss(row.dtype, {5}), dx(row.dtype, {5, 6}), dw(row.dtype, {7, 6});
    LinearCrossEntropy args{.x = x, .weight = w, .labels = labels, .row_loss = loss};
    const auto total = [&] {
      rig.run([&](const Context& ctx) { row.run(ctx, args); });
      double sum = 0;
      for (double v : values(loss)) sum += v;
      return kGradScale * sum;
    };
    args.with_gradients = true;
    args.grad_scale = kGradScale;
    args.dx = dx;
    args.dweight = dw;
    total();
    args.with_gradients = false;
    constexpr double kStep = 1e-6;
    for (const auto& [operand, gradient] : {std::pair(&x, &dx), std::pair(&w, &dw)}) {
      const std::vector<double> base = values(*operand), expected = values(*gradient);
      for (size_t i = 0; i < base.size(); ++i) {
        const auto loss_at = [&](double value) {
          const TensorView flat = operand->view().reshape({operand->view().elements()});
          set(flat.rows(static_cast<int64_t>(i), 1), [=](int64_t) { return value; });
          return total();
        };
        const double up = loss_at(base[i] + kStep), down = loss_at(base[i] - kStep);
        loss_at(base[i]);
        EXPECT_NEAR((up - down) / (2 * kStep), expected[i], 1e-8);
      }
    }
  });
}

// Logits of thousands: exp(logit) overflows, the loss must not.
TEST(LinearCrossEntropy, LargeLogits) {
  for_each_row(&Backend::linear_cross_entropy, [](const LinearCrossEntropyKernel& row) {
    Rig rig(1);
    const DeviceTensor x = filled(row.dtype, {2, 4}, 64.0), w(row.dtype, {3, 4});
    set(w, [](int64_t i) { return i < 4 ? 16.0 : i < 8 ? -16.0 : 15.0; });
    const DeviceTensor loss(accumulator(row.dtype), {2});
    rig.run([&](const Context& ctx) {
      row.run(ctx, {.x = x, .weight = w, .labels = integers({0, 2}), .row_loss = loss});
    });
    EXPECT_NEAR(values(loss)[0], 0.0, 1e-6);
    EXPECT_NEAR(values(loss)[1], 256.0, 1e-3);
  });
}

// Over thousands of logits, with the largest first, last, and ever larger.
TEST(LinearCrossEntropy, TheLargestLogitMayStandAnywhere) {
  for_each_row_and_instruction_set(
      &Backend::linear_cross_entropy, [](const LinearCrossEntropyKernel& row) {
        constexpr int64_t kVocabulary = 5003;
        const DeviceTensor x = filled(row.dtype, {1, 1}, 1.0), w(row.dtype, {kVocabulary, 1});
        const DeviceTensor loss(accumulator(row.dtype), {1}), dx(row.dtype, {1, 1});
        const DeviceTensor dweight(accumulator(row.dtype), {kVocabulary, 1});
        const std::vector<std::function<double(int64_t)>> shapes{
            [](int64_t i) { return i == 0 ? 50.0 : -1.0; },
            [](int64_t i) { return i == kVocabulary - 1 ? 50.0 : -1.0; },
            [](int64_t i) { return static_cast<double>(i) / 32; },
            [](int64_t i) { return static_cast<double>(-i) / 32; }};
        for (const auto& shape : shapes) {
          set(w, shape);
          set(dweight, [](int64_t) { return 0.0; });
          const std::vector<double> logits = values(w);
          const double max = *std::max_element(logits.begin(), logits.end());
          double sum = 0;
          for (double v : logits) sum += std::exp(v - max);
          Rig(1).run([&](const Context& ctx) {
            row.run(ctx, {.x = x,
                          .weight = w,
                          .labels = integers({7}),
                          .row_loss = loss,
                          .with_gradients = true,
                          .dx = dx,
                          .dweight = dweight});
          });
          const double expected = max + std::log(sum) - logits[7];
          EXPECT_NEAR(values(loss)[0], expected, 64 * epsilon(DType::kF32) * (1 + expected));
          std::vector<double> gradient;
          for (double v : logits) gradient.push_back(std::exp(v - max) / sum);
          gradient[7] -= 1;
          expect_near(dweight, gradient, 64 * epsilon(DType::kF32) + epsilon(row.dtype), "dweight");
        }
      });
}

TEST(LinearCrossEntropy, NanIsNotHidden) {
  for_each_row_and_instruction_set(
      &Backend::linear_cross_entropy, [](const LinearCrossEntropyKernel& row) {
        for (int64_t vocabulary : {17, 90, 5000}) {
          for (int64_t at : {int64_t{0}, vocabulary / 2, vocabulary - 1}) {
            const DeviceTensor x = random(row.dtype, {1, 4}, 1),
                               w = random(row.dtype, {vocabulary, 4}, 2);
            set(w.view().rows(at, 1), [](int64_t) { return std::nan(""); });
            const DeviceTensor loss(accumulator(row.dtype), {1});
            Rig(1).run([&](const Context& ctx) {
              row.run(ctx, {.x = x, .weight = w, .labels = integers({3}), .row_loss = loss});
            });
            EXPECT_TRUE(std::isnan(values(loss)[0])) << at << " of " << vocabulary;
          }
        }
      });
}

void expect_named(int32_t bad, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "no error for label " << bad;
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kData);
    EXPECT_THAT(error.what(), ::testing::HasSubstr("label " + std::to_string(bad) + " at row 1 "));
  }
}

TEST(LinearCrossEntropy, NamesALabelOutsideTheVocabulary) {
  check_labels(std::vector<int32_t>{0, -1, 2}, 3);
  for (int32_t bad : {-2, 3}) {
    expect_named(bad, [&] { check_labels(std::vector<int32_t>{0, bad}, 3); });
  }
}

// On CPUs an error; on devices NaN, in its row alone.
TEST(LinearCrossEntropy, ALabelOutsideTheVocabularyDoesNotGoUnnoticed) {
  for_each_row(&Backend::linear_cross_entropy, [](const LinearCrossEntropyKernel& row) {
    Rig rig(1);
    const DType acc = accumulator(row.dtype);
    for (int32_t bad : {-2, 3}) {
      const DeviceTensor x(row.dtype, {2, 4}), w(row.dtype, {3, 4}), loss(acc, {2});
      const DeviceTensor dx(row.dtype, {2, 4}), dweight(acc, {3, 4});
      const auto run = [&] {
        rig.run([&](const Context& ctx) {
          row.run(ctx, {.x = x,
                        .weight = w,
                        .labels = integers({0, bad}),
                        .row_loss = loss,
                        .with_gradients = true,
                        .dx = dx,
                        .dweight = dweight});
        });
      };
      if (test_device() == kCpu) {
        expect_named(bad, run);
        continue;
      }
      run();
      EXPECT_NEAR(values(loss)[0], std::log(3.0), 1e-6);
      EXPECT_TRUE(std::isnan(values(loss)[1]));
      const std::vector<double> gradient = values(dx);
      for (size_t i = 0; i < 8; ++i) EXPECT_EQ(std::isnan(gradient[i]), i >= 4) << i;
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
