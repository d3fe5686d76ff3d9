#include "kernels/adamw.h"

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

struct State {
  std::vector<double> x, m, v;
};

// Algorithm 2 of Loshchilov & Hutter 2019, with the schedule multiplier in the learning rate.
void reference_step(State& s, const std::vector<double>& grad, const AdamW& options) {
  for (size_t i = 0; i < grad.size(); ++i) {
    const double g = grad[i] * options.grad_scale;
    s.m[i] = options.beta1 * s.m[i] + (1 - options.beta1) * g;
    s.v[i] = options.beta2 * s.v[i] + (1 - options.beta2) * g * g;
    const double t = static_cast<double>(options.step);
    const double m_hat = s.m[i] / (1 - std::pow(options.beta1, t));
    const double v_hat = s.v[i] / (1 - std::pow(options.beta2, t));
    s.x[i] -= options.learning_rate *
              (m_hat / (std::sqrt(v_hat) + options.eps) + options.weight_decay * s.x[i]);
  }
}

void expect_steps(const AdamWKernel& row, int64_t n) {
  SCOPED_TRACE(::testing::Message() << n << " parameters");
  Rig rig(3);
  const DType acc = accumulator(row.dtype);
  const DeviceTensor master = random(acc, {n}, 1), m(acc, {n}), v(acc, {n});
  const DeviceTensor param = poisoned(row.dtype, {n});
  State reference{values(master), values(m), values(v)};
  for (int64_t step = 1; step <= 5; ++step) {
    const DeviceTensor grad = random(acc, {n}, 10 + static_cast<uint64_t>(step), 0.3);
    AdamW args{.learning_rate = 1e-2 * static_cast<double>(step),
               .weight_decay = 0.1,
               .grad_scale = 0.5,
               .step = step,
               .grad = grad,
               .master = master,
               .m = m,
               .v = v,
               .param = param};
    rig.run([&](const Context& ctx) { row.run(ctx, args); });
    reference_step(reference, values(grad), args);
  }
  // Five steps of a dozen operations each.
  const double tolerance = 60 * epsilon(acc);
  expect_near(master, reference.x, tolerance, "master");
  expect_near(m, reference.m, tolerance, "m");
  expect_near(v, reference.v, tolerance, "v");
  // The parameter is the master, rounded once.
  const std::vector<double> exact = values(master);
  const DeviceTensor rounded(row.dtype, {n});
  set(rounded, [&](int64_t i) { return exact[static_cast<size_t>(i)]; });
  EXPECT_TRUE(same_bits(param, rounded));
}

TEST(AdamW, FollowsTheReferenceOverSteps) {
  for_each_row_and_instruction_set(&Backend::adamw, [](const AdamWKernel& row) {
    for (int64_t n : {0, 1003, 40000}) expect_steps(row, n);
    for (int64_t n : short_lengths()) expect_steps(row, n);
  });
}

// Ranges end elsewhere with other numbers of threads; an element's result may not notice.
TEST(AdamW, DoesNotDependOnThreads) {
  for_each_row_and_instruction_set(&Backend::adamw, [](const AdamWKernel& row) {
    constexpr int64_t kCount = 100'003;
    const DType acc = accumulator(row.dtype);
    const DeviceTensor grad = random(acc, {kCount}, 1);
    std::vector<DeviceTensor> masters, params;
    for (int threads : {1, 3}) {
      Rig rig(threads);
      DeviceTensor master = random(acc, {kCount}, 2), param(row.dtype, {kCount});
      const DeviceTensor m = random(acc, {kCount}, 3), v = filled(acc, {kCount}, 0.2);
      rig.run([&](const Context& ctx) {
        row.run(ctx, {.learning_rate = 0.1,
                      .weight_decay = 0.1,
                      .step = 7,
                      .grad = grad,
                      .master = master,
                      .m = m,
                      .v = v,
                      .param = param});
      });
      masters.push_back(std::move(master));
      params.push_back(std::move(param));
    }
    EXPECT_TRUE(same_bits(masters[0], masters[1]));
    EXPECT_TRUE(same_bits(params[0], params[1]));
  });
}

TEST(AdamW, ParamMayBeTheMaster) {
  for_each_row(&Backend::adamw, [](const AdamWKernel& row) {
    if (row.dtype == DType::kBF16) return;
    Rig rig(2);
    const DeviceTensor grad = random(row.dtype, {100}, 1);
    std::vector<DeviceTensor> results;
    for (bool shared : {false, true}) {
      DeviceTensor master = random(row.dtype, {100}, 2);
      const DeviceTensor m(row.dtype, {100}), v(row.dtype, {100}), param(row.dtype, {100});
      rig.run([&](const Context& ctx) {
        row.run(ctx, {.learning_rate = 0.1,
                      .grad = grad,
                      .master = master,
                      .m = m,
                      .v = v,
                      .param = shared ? master : param});
      });
      results.push_back(std::move(master));
    }
    EXPECT_TRUE(same_bits(results[0], results[1]));
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
