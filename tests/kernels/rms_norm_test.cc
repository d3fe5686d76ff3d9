#include "kernels/rms_norm.h"

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

constexpr double kEps = 1e-5;

struct Truth {
  std::vector<double> y, rstd, dx, dweight;
};

// dx by the chain rule through rstd, written out per pair of channels. Without a weight, w is ones.
Truth truth(const std::vector<double>& x, const std::vector<double>& w,
            const std::vector<double>& dy, double scale, size_t rows, size_t channels) {
  Truth t;
  // Sums over thousands of rows, which err less than those that are tested.
  std::vector<long double> dweight(channels, 0.0L);
  for (size_t r = 0; r < rows; ++r) {
    const double* row = x.data() + r * channels;
    double squares = 0;
    for (size_t c = 0; c < channels; ++c) squares += row[c] * row[c];
    const double rms = std::sqrt(squares / static_cast<double>(channels) + kEps);
    t.rstd.push_back(1 / rms);
    double along = 0;  // d(loss)/d(rms)
    for (size_t c = 0; c < channels; ++c) {
      t.y.push_back(scale * row[c] / rms * w[c]);
      dweight[c] += static_cast<long double>(dy[r * channels + c]) * scale * row[c] / rms;
      along -= dy[r * channels + c] * scale * w[c] * row[c] / (rms * rms);
    }
    for (size_t c = 0; c < channels; ++c) {
      const double drms = row[c] / (static_cast<double>(channels) * rms);
      t.dx.push_back(dy[r * channels + c] * scale * w[c] / rms + along * drms);
    }
  }
  t.dweight.assign(dweight.begin(), dweight.end());
  return t;
}

struct Form {
  bool weighted = true;
  double scale = 1;
};

void expect_row(const RmsNormKernel& row, int64_t rows, int64_t channels, int threads,
                int64_t gap = Gapped::kGap, const Form& form = {}) {
  SCOPED_TRACE(std::to_string(rows) + "x" + std::to_string(channels) +
               (form.weighted ? "" : " without weight") + " by " + std::to_string(form.scale));
  const DType acc = accumulator(row.dtype);
  Rig rig(threads);
  const Shape shape{rows, channels};
  Gapped x(row.dtype, shape, gap), y(row.dtype, shape, gap);
  Gapped dy(row.dtype, shape, gap), dx(row.dtype, shape, gap);
  fill_random(x, 1);
  fill_random(dy, 3);
  fill_random(dx, 4);
  const DeviceTensor weight = random(row.dtype, {channels}, 2), rstd = poisoned(acc, {rows});
  const DeviceTensor dweight = random(acc, {channels}, 5);
  if (!form.weighted) set(weight, [](int64_t) { return 1.0; });
  const Truth t = truth(values(x), values(weight), values(dy), form.scale,
                        static_cast<size_t>(rows), static_cast<size_t>(channels));
  std::vector<double> expected_dx = values(dx), expected_dweight = values(dweight);
  for (size_t i = 0; i < expected_dx.size(); ++i) expected_dx[i] += t.dx[i];
  for (size_t i = 0; i < expected_dweight.size() && form.weighted; ++i) {
    expected_dweight[i] += t.dweight[i];
  }
  const ConstTensorView used = form.weighted ? ConstTensorView(weight) : ConstTensorView();
  const TensorView gradient = form.weighted ? dweight.view() : TensorView();
  rig.run([&](const Context& ctx) {
    row.forward(ctx,
                {.x = x, .weight = used, .eps = kEps, .scale = form.scale, .y = y, .rstd = rstd});
    row.backward(ctx, {.dy = dy,
                       .x = x,
                       .weight = used,
                       .rstd = rstd,
                       .scale = form.scale,
                       .dx = dx,
                       .dweight = gradient});
  });
  // Sums of up to 1000 terms in the accumulator, and one rounding of the result.
  const double tolerance = 32 * epsilon(acc);
  expect_near(y, t.y, tolerance + epsilon(row.dtype), "y");
  expect_near(rstd, t.rstd, tolerance, "rstd");
  // One channel normalises to a sign, so its gradient cancels.
  expect_near(dx, expected_dx, tolerance + epsilon(row.dtype), "dx",
              channels == 1 ? form.scale * norm(values(dy)) / norm(values(x)) : 0.0);
  expect_near(dweight, expected_dweight, tolerance, "dweight");
  EXPECT_TRUE(y.gaps_intact() && dx.gaps_intact());
}

TEST(RmsNorm, ForwardAndBackward) {
  for_each_row_and_instruction_set(&Backend::rms_norm, [](const RmsNormKernel& row) {
    for (int threads : numbers_of_threads({1, 3})) {
      for (const auto& [rows, channels] : std::vector<std::pair<int64_t, int64_t>>{
               {0, 8}, {1, 1}, {3, 17}, {130, 64}, {1, 1000}, {5000, 5}}) {
        expect_row(row, rows, channels, threads);
      }
    }
    for (int64_t channels : short_lengths()) {
      for (int64_t gap : {Gapped::kGap, Gapped::kAlignedGap}) {
        expect_row(row, 2, channels, 1, gap);
      }
    }
    // Several pieces a thread, and several rows a part; narrow rows likewise, as of heads.
    expect_row(row, 35, 2100, 1, Gapped::kAlignedGap);
    expect_row(row, 1200, 128, 1, Gapped::kAlignedGap);
    // Sums that a block of a GPU has to ask memory for.
    if (test_device().kind != DeviceKind::kCpu) expect_row(row, 2, 12288, 1, Gapped::kAlignedGap);
  });
}

// SRMSNorm, rows of length 1, and both at once.
TEST(RmsNorm, WithoutWeightAndScaled) {
  for_each_row_and_instruction_set(&Backend::rms_norm, [](const RmsNormKernel& row) {
    for (const Form& form : {Form{.weighted = false}, Form{.weighted = false, .scale = 0.125},
                             Form{.weighted = true, .scale = 1.75}}) {
      for (int threads : numbers_of_threads({1, 3})) {
        for (const auto& [rows, channels] : std::vector<std::pair<int64_t, int64_t>>{
                 {0, 8}, {1, 1}, {3, 17}, {300, 64}, {9, 1000}}) {
          expect_row(row, rows, channels, threads, Gapped::kGap, form);
          expect_row(row, rows, channels, threads, Gapped::kAlignedGap, form);
        }
      }
    }
  });
}

TEST(RmsNorm, FiniteDifferences) {
  for_each_row(&Backend::rms_norm, [](const RmsNormKernel& row) {
    if (row.dtype != DType::kF64) return;
    constexpr double kScale = 0.6;
    Rig rig(1);
    const Shape shape{5, 12};
    const DeviceTensor dy = random(row.dtype, shape, 3);
    const DeviceTensor rstd(row.dtype, {5}), y(row.dtype, shape);
    const auto loss = [&](const DeviceTensor& x, const DeviceTensor& w) {
      rig.run([&](const Context& ctx) {
        row.forward(ctx, {.x = x, .weight = w, .eps = kEps, .scale = kScale, .y = y, .rstd = rstd});
      });
      const std::vector<double> out = values(y), g = values(dy);
      double sum = 0;
      for (size_t i = 0; i < out.size(); ++i) sum += out[i] * g[i];
      return sum;
    };
    const DeviceTensor x = random(row.dtype, shape, 1), w = random(row.dtype, {12}, 2);
    loss(x, w);
    const DeviceTensor dx(row.dtype, shape), dw(row.dtype, {12});
    rig.run([&](const Context& ctx) {
      row.backward(
          ctx,
          {.dy = dy, .x = x, .weight = w, .rstd = rstd, .scale = kScale, .dx = dx, .dweight = dw});
    });
    constexpr double kStep = 1e-6;
    for (const auto& [operand, gradient] : {std::pair(&x, &dx), std::pair(&w, &dw)}) {
      const std::vector<double> base = values(*operand), expected = values(*gradient);
      for (size_t i = 0; i < base.size(); ++i) {
        const auto loss_at = [&](double value) {
          const TensorView flat = operand->view().reshape({operand->view().elements()});
          set(flat.rows(static_cast<int64_t>(i), 1), [=](int64_t) { return value; });
          return loss(x, w);
        };
        const double up = loss_at(base[i] + kStep), down = loss_at(base[i] - kStep);
        loss_at(base[i]);
        EXPECT_NEAR((up - down) / (2 * kStep), expected[i], 1e-8);
      }
    }
  });
}

TEST(RmsNorm, WeightGradientsDoNotDependOnThreads) {
  for_each_row_and_instruction_set(&Backend::rms_norm, [](const RmsNormKernel& row) {
    const DType acc = accumulator(row.dtype);
    const Shape shape{3333, 40};
    const DeviceTensor dy = random(row.dtype, shape, 1), x = random(row.dtype, shape, 2);
    const DeviceTensor weight = random(row.dtype, {40}, 3), rstd = filled(acc, {3333}, 0.7);
    DeviceTensor first;
    for (int threads : {1, 3, 3, 4}) {
      const DeviceTensor dx(row.dtype, shape);
      DeviceTensor dweight(acc, {40});
      Rig(threads).run([&](const Context& ctx) {
        row.backward(
            ctx, {.dy = dy, .x = x, .weight = weight, .rstd = rstd, .dx = dx, .dweight = dweight});
      });
      if (threads == 1) {
        first = std::move(dweight);
      } else {
        EXPECT_TRUE(same_bits(first, dweight));
      }
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
