// Linear attention, every row of every table, against the recurrence in fp64: shapes, decays, runs,
// documents, threads and instruction sets; and what must not leak.
#include "kernels/linear_attention.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/linear_attention_problem.h"
#include "tests/slow_build.h"

namespace longhaul::kernels::testing {
namespace {

// Rows outside runs hold what they held: zeros, for a comparison with the truth.
void clear_outside(const LinearCase& c, const DeviceTensor& out) {
  std::vector<bool> inside(static_cast<size_t>(c.shape.tokens));
  for (const LinearRun& run : c.runs) {
    std::fill_n(inside.begin() + run.begin, run.length, true);
  }
  for (int64_t t = 0; t < c.shape.tokens; ++t) {
    if (inside[static_cast<size_t>(t)]) continue;
    const TensorView row = out.view().rows(t, 1);
    for (const double value : values(row)) EXPECT_TRUE(std::isnan(value)) << "row " << t;
    set(row, [](int64_t) { return 0.0; });
  }
}

void expect_case(const LinearAttentionKernel& row, const LinearCase& c, int threads) {
  SCOPED_TRACE("T " + std::to_string(c.shape.tokens) + ", D " + std::to_string(c.shape.head_dim) +
               ", Dv " + std::to_string(c.shape.value_dim) + ", threads " +
               std::to_string(threads));
  Rig rig(threads);
  const LinearProblem p(row.dtype, c);
  const LinearResults r = run_linear(rig, row, p);
  clear_outside(c, r.out);
  expect_results(r, p.truth(), linear_tolerance(row.dtype));
  for (const Gapped* x : {&p.q, &p.k, &p.v, &p.dout}) EXPECT_TRUE(x->gaps_intact());
  const LinearResults again = run_linear(rig, row, p);
  clear_outside(c, again.out);
  for (size_t i = 0; i < r.all().size(); ++i) {
    EXPECT_TRUE(same_bits(*r.all()[i], *again.all()[i])) << "result " << i << " of a second run";
  }
}

TEST(LinearAttention, EveryLength) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    for (const int64_t tokens : {0, 1, 2, 63, 64, 65, 127, 200, 523}) {
      for (const int threads : numbers_of_threads({1, 3})) {
        expect_case(row, plain_case(tokens, 16, 24), threads);
      }
    }
  });
}

TEST(LinearAttention, EveryHeadDimension) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    for (const auto& [d, e] : std::vector<std::pair<int64_t, int64_t>>{{32, 32},
                                                                       {64, 64},
                                                                       {96, 96},
                                                                       {128, 128},
                                                                       {192, 192},
                                                                       {256, 256},
                                                                       {192, 128},
                                                                       {32, 256},
                                                                       {40, 71},
                                                                       {1, 3},
                                                                       {3, 1}}) {
      expect_case(row, plain_case(test::slow_build() ? 71 : 137, d, e), 2);
    }
  });
}

// The vector code of every instruction set that this machine can run, not only of the best one.
TEST(LinearAttention, EveryInstructionSet) {
  for_each_row_and_instruction_set(&Backend::linear_attention,
                                   [](const LinearAttentionKernel& row) {
                                     LinearCase c = plain_case(300, 48, 72);
                                     c.documents = {0, 70, 75, 210};
                                     for (const int threads : numbers_of_threads({1, 3}))
                                       expect_case(row, c, threads);
                                     expect_case(row, plain_case(150, 27, 13), 1);
                                   });
}

TEST(LinearAttention, RunsAndDocuments) {
  const LinearShape shape{.tokens = 700, .heads = 3, .head_dim = 12, .value_dim = 20};
  const std::vector<double> slopes{0.7, 0.01, 0.0};
  std::vector<int64_t> tiny(200);
  std::iota(tiny.begin(), tiny.end(), 251);
  const std::vector<LinearCase> cases{
      // Two runs, as a zigzag layout gives; the first sees no document begin.
      {shape, slopes, {{0, 350}, {350, 350}}, {400, 401, 500}},
      // One that begins with a document, rows between runs, an empty run.
      {shape, slopes, {{10, 300}, {310, 0}, {400, 290}}, {10, 350, 399, 450}},
      {shape, slopes, {{0, 700}}, {64, 128, 192, 193, 256, 699}},
      {shape, slopes, {{0, 700}}, tiny},
      {shape, slopes, {}, {5}},
      {{.tokens = 1500, .heads = 1, .head_dim = 8, .value_dim = 4}, {0.02}, {{0, 1500}}, {900}},
      {{.tokens = 1500, .heads = 1, .head_dim = 8, .value_dim = 4}, {0.02}, {{3, 1490}}, {}},
      {{.tokens = 100, .heads = 0, .head_dim = 8, .value_dim = 4}, {}, {{0, 100}}, {}},
  };
  for_each_row(&Backend::linear_attention, [&](const LinearAttentionKernel& row) {
    for (LinearCase c : cases) {
      if (test::slow_build()) {
        c.shape.heads = std::min<int64_t>(c.shape.heads, 1);
        c.slopes.resize(static_cast<size_t>(c.shape.heads));
      }
      for (const int threads : numbers_of_threads({1, 3, 5})) expect_case(row, c, threads);
    }
  });
}

// Decays from none to one that nothing survives, over blocks and blocks.
TEST(LinearAttention, EveryDecay) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    const int64_t tokens = test::slow_build() ? 500 : 5000;
    for (const double slope : {0.0, 1e-7, 0.05, 1.5, 20.0, 700.0, 1e5}) {
      SCOPED_TRACE(slope);
      const LinearCase c{.shape = {.tokens = tokens, .heads = 1, .head_dim = 6, .value_dim = 5},
                         .slopes = {slope},
                         .runs = {{0, tokens}}};
      for (const int threads : numbers_of_threads({1, 2})) expect_case(row, c, threads);
    }
  });
}

// A power of the decay that is rounded once and applied block after block would change the decay:
// a^64 is as far from an f32 as it can be, 2^-25, which 400 blocks turn into a relative 1.2e-5.
// Sums, whose rounding errors are independent, err by some 20 2^-25, or 6e-7.
TEST(LinearAttention, SlowDecayOverManyBlocks) {
  if (test::slow_build()) GTEST_SKIP() << "left to fast builds";
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    if (accumulator(row.dtype) != DType::kF32) return;
    const LinearCase c{.shape = {.tokens = 64 * 400, .heads = 1, .head_dim = 4, .value_dim = 4},
                       .slopes = {2.5 * 0x1p-24 / 64},
                       .runs = {{0, 64 * 400}}};
    Rig rig(1);
    const LinearProblem p(row.dtype, c);
    // Most of the results come from what enters, but enough is added for errors to be independent.
    for (const DeviceTensor* x : {&p.state_in, &p.dstate_out}) {
      set(*x, [&](int64_t n) { return 1000.0 + 90.0 * static_cast<double>(n); });
    }
    const LinearResults r = run_linear(rig, row, p);
    const LinearTruth truth = p.truth();
    expect_near(r.state_out, truth.state_out, 2e-6, "state_out");
    expect_near(r.dstate_in, truth.dstate_in, 2e-6, "dstate_in");
  });
}

// Gradients are added to what is there.
TEST(LinearAttention, GradientsAccumulate) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    const LinearProblem p(row.dtype, plain_case(100, 20, 20));
    Rig rig(1);
    const LinearResults once = run_linear(rig, row, p);
    const LinearResults twice(p);
    rig.run([&](const Context& ctx) {
      for (int i = 0; i < 2; ++i) {
        row.backward(ctx, {.tokens = p.c.tokens(),
                           .q = p.q,
                           .k = p.k,
                           .v = p.v,
                           .dout = p.dout,
                           .state_in = p.state_in,
                           .dstate_out = p.dstate_out,
                           .dq_acc = twice.dq,
                           .dk_acc = twice.dk,
                           .dv_acc = twice.dv});
      }
    });
    for (const auto& [a, b] : {std::pair(&once.dq, &twice.dq), std::pair(&once.dk, &twice.dk),
                               std::pair(&once.dv, &twice.dv)}) {
      std::vector<double> doubled = values(*a);
      for (double& x : doubled) x *= 2;
      expect_near(*b, doubled, linear_tolerance(row.dtype), "twice");
    }
  });
}

bool has_nan(const DeviceTensor& x, int64_t row) {
  const std::vector<double> of_row = values(x.view().rows(row, 1));
  return std::any_of(of_row.begin(), of_row.end(), [](double v) { return std::isnan(v); });
}

// Results are views into buffers of many parts.
TEST(LinearAttention, ResultsBeginAnywhere) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    LinearCase c = plain_case(150, 32, 48);
    const LinearProblem p(row.dtype, c);
    Rig rig(2);
    const LinearResults expected = run_linear(rig, row, p);
    const AtOddElement out(p.acc, p.v.view().shape()), dv(p.acc, p.v.view().shape());
    const AtOddElement dq(p.acc, p.q.view().shape()), dk(p.acc, p.q.view().shape());
    rig.run([&](const Context& ctx) {
      row.forward(ctx, {.tokens = c.tokens(),
                        .q = p.q,
                        .k = p.k,
                        .v = p.v,
                        .state_in = p.state_in,
                        .out_acc = out});
    });
    rig.run([&](const Context& ctx) {
      row.backward(ctx, {.tokens = c.tokens(),
                         .q = p.q,
                         .k = p.k,
                         .v = p.v,
                         .dout = p.dout,
                         .state_in = p.state_in,
                         .dstate_out = p.dstate_out,
                         .dq_acc = dq,
                         .dk_acc = dk,
                         .dv_acc = dv});
    });
    EXPECT_TRUE(same_bits(expected.out, out));
    EXPECT_TRUE(same_bits(expected.dq, dq));
    EXPECT_TRUE(same_bits(expected.dk, dk));
    EXPECT_TRUE(same_bits(expected.dv, dv));
  });
}

// NaN stays in its document, and a state of NaN does not matter to a run that begins with one.
TEST(LinearAttention, NanStaysInItsDocument) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    for (const int threads : numbers_of_threads({1, 3})) {
      LinearCase c = plain_case(900, 16, 16);
      c.shape.heads = 1;
      c.slopes = {0.01};
      c.documents = {0, 300, 640};
      LinearProblem p(row.dtype, c);
      poison(p.state_in);
      set(p.k.view().rows(350, 1), [](int64_t) { return std::nan(""); });
      set(p.dout.view().rows(500, 1), [](int64_t) { return std::nan(""); });
      Rig rig(threads);
      const LinearResults r = run_linear(rig, row, p);
      for (int64_t t = 0; t < 900; ++t) {
        EXPECT_EQ(has_nan(r.out, t), t >= 350 && t < 640) << "out " << t;
        if (t < 300 || t >= 640) {
          EXPECT_FALSE(has_nan(r.dq, t) || has_nan(r.dk, t) || has_nan(r.dv, t)) << t;
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
TEST(LinearAttention, PollsWithinLongTasks) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    if (test_device().kind != DeviceKind::kCpu) return;
    LinearCase c = plain_case(9000, 64, 64);
    c.shape.heads = 1;
    c.slopes = {0.01};
    const LinearProblem p(row.dtype, c);
    Rig rig(1);
    int polls = 0;
    rig.poll = [&] { ++polls; };
    const LinearResults r(p);
    rig.run([&](const Context& ctx) {
      row.forward(ctx, {.tokens = c.tokens(), .q = p.q, .k = p.k, .v = p.v, .out_acc = r.out});
    });
    EXPECT_GT(polls, 1);
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
