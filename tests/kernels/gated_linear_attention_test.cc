// Gated linear attention, every row of every table, against the recurrence in fp64: shapes, gates,
// runs, documents, threads and instruction sets; and what must not leak.
#include "kernels/gated_linear_attention.h"

#include <numeric>

#include "tests/kernels/gated_linear_attention_problem.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/slow_build.h"

namespace longhaul::kernels::testing {
namespace {

// Rows outside runs hold what they held: zeros, for a comparison with the truth.
void clear_outside(const GatedCase& c, const DeviceTensor& out) {
  std::vector<bool> inside(static_cast<size_t>(c.shape.tokens));
  for (const LinearRun& run : c.runs) std::fill_n(inside.begin() + run.begin, run.length, true);
  for (int64_t t = 0; t < c.shape.tokens; ++t) {
    if (inside[static_cast<size_t>(t)]) continue;
    const TensorView row = out.view().rows(t, 1);
    for (const double value : values(row)) EXPECT_TRUE(std::isnan(value)) << "row " << t;
    set(row, [](int64_t) { return 0.0; });
  }
}

void expect_case(const GatedLinearAttentionKernel& row, const GatedCase& c, int threads) {
  SCOPED_TRACE("T " + std::to_string(c.shape.tokens) + ", D " + std::to_string(c.shape.head_dim) +
               ", Dv " + std::to_string(c.shape.value_dim) + ", threads " +
               std::to_string(threads));
  Rig rig(threads);
  const GatedProblem p(row.dtype, c);
  p.poison_outside();
  GatedTruth truth = p.truth();
  const GatedResults r = run_gated(rig, row, p);
  const GatedResults again = run_gated(rig, row, p);
  for (const GatedResults* results : {&r, &again}) {
    clear_outside(c, results->out);
    clear_outside(c, results->dlog_gate);
  }
  expect_gated(p, r, truth);
  for (const Gapped* x : {&p.q, &p.k, &p.v, &p.dout}) EXPECT_TRUE(x->gaps_intact());
  for (size_t i = 0; i < r.all().size(); ++i) {
    EXPECT_TRUE(same_bits(*r.all()[i], *again.all()[i])) << "result " << i << " of a second run";
  }
}

TEST(GatedLinearAttention, EveryLength) {
  for_each_row(&Backend::gated_linear_attention, [](const GatedLinearAttentionKernel& row) {
    for (const int64_t tokens : {0, 1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 200, 523}) {
      for (const int threads : numbers_of_threads({1, 3}))
        expect_case(row, plain_gated_case(tokens, 16, 24), threads);
    }
  });
}

TEST(GatedLinearAttention, EveryHeadDimension) {
  for_each_row(&Backend::gated_linear_attention, [](const GatedLinearAttentionKernel& row) {
    const int64_t tokens = test::slow_build() ? 41 : 137;
    for (const auto& [d, e] : std::vector<std::pair<int64_t, int64_t>>{{32, 32},
                                                                       {64, 64},
                                                                       {96, 96},
                                                                       {128, 128},
                                                                       {192, 128},
                                                                       {32, 256},
                                                                       {40, 71},
                                                                       {1, 3},
                                                                       {3, 1}}) {
      expect_case(row, plain_gated_case(tokens, d, e), 2);
    }
  });
}

// The vector code of every instruction set that this machine can run, not only of the best one.
TEST(GatedLinearAttention, EveryInstructionSet) {
  for_each_row_and_instruction_set(&Backend::gated_linear_attention,
                                   [](const GatedLinearAttentionKernel& row) {
                                     GatedCase c = plain_gated_case(300, 48, 72);
                                     c.documents = {0, 70, 75, 210};
                                     for (const int threads : numbers_of_threads({1, 3}))
                                       expect_case(row, c, threads);
                                     expect_case(row, plain_gated_case(150, 27, 13), 1);
                                   });
}

TEST(GatedLinearAttention, RunsAndDocuments) {
  const GatedShape shape{.tokens = 700, .heads = 3, .head_dim = 12, .value_dim = 20};
  std::vector<int64_t> tiny(200);
  std::iota(tiny.begin(), tiny.end(), 251);
  const std::vector<GatedCase> cases{
      // Two runs, as a zigzag layout gives; the first sees no document begin.
      {shape, {{0, 350}, {350, 350}}, {400, 401, 500}},
      // One that begins with a document, rows between runs, an empty run.
      {shape, {{10, 300}, {310, 0}, {400, 290}}, {10, 350, 399, 450}},
      {shape, {{0, 700}}, {64, 128, 192, 193, 256, 265, 290, 699}},
      {shape, {{0, 700}}, tiny},
      {shape, {}, {5}},
      {{.tokens = 1500, .heads = 1, .head_dim = 8, .value_dim = 4}, {{0, 1500}}, {900}},
      {{.tokens = 1500, .heads = 1, .head_dim = 8, .value_dim = 4}, {{3, 1490}}, {}},
      {{.tokens = 100, .heads = 0, .head_dim = 8, .value_dim = 4}, {{0, 100}}, {}},
  };
  for_each_row(&Backend::gated_linear_attention, [&](const GatedLinearAttentionKernel& row) {
    for (GatedCase c : cases) {
      if (test::slow_build()) c.shape.heads = std::min<int64_t>(c.shape.heads, 1);
      for (const int threads : numbers_of_threads({1, 2, 4})) expect_case(row, c, threads);
    }
  });
}

// Gates from none to ones that nothing survives, alone and side by side, over blocks and blocks.
TEST(GatedLinearAttention, EveryGate) {
  const auto constant = [](double gate) { return [gate](int64_t) { return gate; }; };
  const double infinity = std::numeric_limits<double>::infinity();
  std::vector<Gates> all;
  for (const double gate : {0.0, -1e-7, -0.05, -1.5, -20.0, -100.0, -700.0, -1e4, -infinity}) {
    all.push_back(constant(gate));
  }
  all.push_back([&](int64_t n) {  // now and then
    return n % 37 == 5 ? -1e4 : n % 53 == 1 ? -100.0 : n % 101 == 7 ? -infinity : -1e-3;
  });
  all.push_back([](int64_t n) { return n % 6 == 0 ? 0.0 : n % 6 == 1 ? -1e-6 : -30.0; });
  for_each_row(&Backend::gated_linear_attention, [&](const GatedLinearAttentionKernel& row) {
    const int64_t tokens = test::slow_build() ? 300 : 1100;
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(i);
      const GatedCase c{.shape = {.tokens = tokens, .heads = 1, .head_dim = 6, .value_dim = 5},
                        .runs = {{0, tokens}},
                        .gates = all[i]};
      for (const int threads : numbers_of_threads({1, 2})) expect_case(row, c, threads);
    }
  });
}

// As for a scalar decay: rounding e^(the gates of a block) once and applying it block after block
// would change the decay by 1.2e-5 in 400 blocks. Gates alone are rounded, too, but differently.
TEST(GatedLinearAttention, SlowGatesOverManyBlocks) {
  if (test::slow_build()) GTEST_SKIP() << "left to fast builds";
  for_each_row(&Backend::gated_linear_attention, [](const GatedLinearAttentionKernel& row) {
    if (accumulator(row.dtype) != DType::kF32) return;
    const GatedCase c{.shape = {.tokens = 64 * 400, .heads = 1, .head_dim = 4, .value_dim = 4},
                      .runs = {{0, 64 * 400}},
                      .gates = [](int64_t) { return -2.5 * 0x1p-24 / 64; }};
    Rig rig(1);
    const GatedProblem p(row.dtype, c);
    for (const DeviceTensor* x : {&p.state_in, &p.dstate_out}) {
      set(*x, [&](int64_t n) { return 1000.0 + 90.0 * static_cast<double>(n); });
    }
    const GatedResults r = run_gated(rig, row, p);
    const GatedTruth truth = p.truth();
    expect_near(r.state_out, truth.state_out, 2e-6, "state_out");
    expect_near(r.dstate_in, truth.dstate_in, 2e-6, "dstate_in");
  });
}

// Gradients are added to what is there; dlog_gate is not.
TEST(GatedLinearAttention, GradientsAccumulate) {
  for_each_row(&Backend::gated_linear_attention, [](const GatedLinearAttentionKernel& row) {
    const GatedProblem p(row.dtype, plain_gated_case(100, 20, 20));
    Rig rig(1);
    const GatedResults once = run_gated(rig, row, p);
    const GatedResults twice(p);
    for (int i = 0; i < 2; ++i) {
      rig.run([&](const Context& ctx) {
        row.backward(ctx, {.tokens = p.tokens(),
                           .q = p.q,
                           .k = p.k,
                           .v = p.v,
                           .dout = p.dout,
                           .state_in = p.state_in,
                           .dstate_out = p.dstate_out,
                           .dq_acc = twice.dq,
                           .dk_acc = twice.dk,
                           .dv_acc = twice.dv});
      });
    }
    for (const auto& [a, b] : {std::pair(&once.dq, &twice.dq), std::pair(&once.dk, &twice.dk),
                               std::pair(&once.dv, &twice.dv)}) {
      std::vector<double> doubled = values(*a);
      for (double& x : doubled) x *= 2;
      expect_near(*b, doubled, gated_tolerance(row.dtype), "twice");
    }
  });
}

bool has_nan(const DeviceTensor& x, int64_t row) {
  const std::vector<double> of_row = values(x.view().rows(row, 1));
  return std::any_of(of_row.begin(), of_row.end(), [](double v) { return std::isnan(v); });
}

// NaN stays in its document, and a state of NaN does not matter to a run that begins with one.
TEST(GatedLinearAttention, NanStaysInItsDocument) {
  for_each_row(&Backend::gated_linear_attention, [](const GatedLinearAttentionKernel& row) {
    for (const int threads : numbers_of_threads({1, 3})) {
      GatedCase c = plain_gated_case(900, 16, 16);
      c.shape.heads = 1;
      c.documents = {0, 300, 645};
      const GatedProblem p(row.dtype, c);
      poison(p.state_in);
      set(p.k.view().rows(350, 1), [](int64_t) { return std::nan(""); });
      set(p.dout.view().rows(500, 1), [](int64_t) { return std::nan(""); });
      Rig rig(threads);
      const GatedResults r = run_gated(rig, row, p);
      for (int64_t t = 0; t < 900; ++t) {
        const bool before = t < 350 - kGatedSubBlock;  // "a few rows"
        EXPECT_FALSE((before || t >= 645) && has_nan(r.out, t)) << "out " << t;
        EXPECT_TRUE(t < 350 || t >= 645 || has_nan(r.out, t)) << "out " << t;
        if (t < 300 || t >= 645) {
          EXPECT_FALSE(has_nan(r.dq, t) || has_nan(r.dk, t) || has_nan(r.dv, t) ||
                       has_nan(r.dlog_gate, t))
              << t;
        }
        if (t >= 300 && t <= 500) {
          EXPECT_TRUE(has_nan(r.dk, t) && has_nan(r.dv, t)) << t;
        }
      }
      for (const double x : values(r.dstate_in)) EXPECT_EQ(x, 0.0);
      for (const double x : values(r.state_out)) EXPECT_TRUE(std::isfinite(x));
    }
  });
}

// Transfers must progress within a long call also when it is a single task.
TEST(GatedLinearAttention, PollsWithinLongTasks) {
  for_each_row(&Backend::gated_linear_attention, [](const GatedLinearAttentionKernel& row) {
    if (test_device().kind != DeviceKind::kCpu) return;
    GatedCase c = plain_gated_case(9000, 64, 64);
    c.shape.heads = 1;
    const GatedProblem p(row.dtype, c);
    Rig rig(1);
    int polls = 0;
    rig.poll = [&] { ++polls; };
    const GatedResults r(p);
    rig.run([&](const Context& ctx) {
      row.forward(ctx, {.tokens = p.tokens(), .q = p.q, .k = p.k, .v = p.v, .out_acc = r.out});
    });
    EXPECT_GT(polls, 1);
  });
}

// The gradients of the reference, each against a central difference of its own outputs.
TEST(GatedLinearAttention, ReferenceGradientsAreDifferences) {
  const GatedShape shape{.tokens = 9, .heads = 2, .head_dim = 3, .value_dim = 2};
  const std::vector<LinearRun> runs{{0, 5}, {5, 4}};
  const std::vector<int64_t> documents{3};
  const auto random_values = [](int64_t n, uint64_t seed) {
    return values(random(DType::kF64, {n}, seed));
  };
  GatedOperands x{.q = random_values(54, 1),
                  .k = random_values(54, 2),
                  .v = random_values(36, 3),
                  .dout = random_values(36, 4),
                  .log_gate = random_values(54, 5),
                  .state_in = random_values(24, 6),
                  .dstate_out = random_values(24, 7)};
  for (double& gate : x.log_gate) gate = -gate * gate;
  const auto objective = [&] {
    const GatedTruth y = gated_linear_attention_truth(shape, runs, documents, x);
    return std::inner_product(y.out.begin(), y.out.end(), x.dout.begin(), 0.0) +
           std::inner_product(y.state_out.begin(), y.state_out.end(), x.dstate_out.begin(), 0.0);
  };
  const GatedTruth truth = gated_linear_attention_truth(shape, runs, documents, x);
  const auto judge = [&](std::vector<double>& operand, const std::vector<double>& gradient,
                         const std::string& what) {
    constexpr double kStep = 1e-4;
    for (size_t i = 0; i < operand.size(); ++i) {
      const double value = operand[i];
      operand[i] = value + kStep;
      const double above = objective();
      operand[i] = value - kStep;
      const double below = objective();
      operand[i] = value;
      EXPECT_NEAR(gradient[i], (above - below) / (2 * kStep), 1e-6) << what << " " << i;
    }
  };
  judge(x.q, truth.dq, "dq");
  judge(x.k, truth.dk, "dk");
  judge(x.v, truth.dv, "dv");
  judge(x.log_gate, truth.dlog_gate, "dlog_gate");
  judge(x.state_in, truth.dstate_in, "dstate_in");
}

}  // namespace
}  // namespace longhaul::kernels::testing
