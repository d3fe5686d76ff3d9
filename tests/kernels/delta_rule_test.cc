// The gated delta rule, every row of every table, against the recurrence in fp64: shapes, gates,
// betas, runs, documents, threads and instruction sets; parts of a sequence; and what must not
// leak.
#include "kernels/delta_rule.h"

#include <numeric>

#include "tests/kernels/delta_rule_problem.h"
#include "tests/kernels/instruction_sets.h"
#include "tests/slow_build.h"

namespace longhaul::kernels::testing {
namespace {

// Rows outside runs hold what they held: zeros, for a comparison with the truth.
void clear_outside(const DeltaCase& c, const DeviceTensor& out) {
  std::vector<bool> inside(static_cast<size_t>(c.shape.tokens));
  for (const LinearRun& run : c.runs) std::fill_n(inside.begin() + run.begin, run.length, true);
  for (int64_t t = 0; t < c.shape.tokens; ++t) {
    if (inside[static_cast<size_t>(t)]) continue;
    const TensorView row = out.view().rows(t, 1);
    for (const double value : values(row)) EXPECT_TRUE(std::isnan(value)) << "row " << t;
    set(row, [](int64_t) { return 0.0; });
  }
}

void expect_case(const DeltaRuleKernel& row, const DeltaCase& c, int threads) {
  SCOPED_TRACE("T " + std::to_string(c.shape.tokens) + ", D " + std::to_string(c.shape.head_dim) +
               ", Dv " + std::to_string(c.shape.value_dim) + ", threads " +
               std::to_string(threads));
  Rig rig(threads);
  const DeltaProblem p(row.dtype, c);
  p.poison_outside();
  const DeltaResults r = run_delta(rig, row, p);
  const DeltaResults again = run_delta(rig, row, p);
  for (const DeltaResults* results : {&r, &again}) {
    for (const DeviceTensor* x : {&results->out, &results->dlog_gate, &results->dbeta}) {
      clear_outside(c, *x);
    }
  }
  expect_delta(p, r, p.truth());
  for (const Gapped* x : {&p.q, &p.k, &p.v, &p.dout}) EXPECT_TRUE(x->gaps_intact());
  for (size_t i = 0; i < r.all().size(); ++i) {
    EXPECT_TRUE(same_bits(*r.all()[i], *again.all()[i])) << "result " << i << " of a second run";
  }
}

TEST(DeltaRule, EveryLength) {
  for_each_row(&Backend::delta_rule, [](const DeltaRuleKernel& row) {
    for (const int64_t tokens : {0, 1, 2, 15, 16, 17, 33, 63, 64, 65, 127, 200, 523}) {
      expect_case(row, plain_delta_case(tokens, 16, 24), 2);
    }
    // More than one and two segments of states.
    for (const int64_t tokens : {64 * 16, 64 * 16 + 1, 64 * 35}) {
      expect_case(row, plain_delta_case(tokens, 4, 5), 1);
    }
  });
}

TEST(DeltaRule, EveryHeadDimension) {
  for_each_row(&Backend::delta_rule, [](const DeltaRuleKernel& row) {
    const int64_t tokens = test::slow_build() ? 41 : 81;
    for (const auto& [d, e] : std::vector<std::pair<int64_t, int64_t>>{
             {32, 32}, {64, 64}, {128, 128}, {192, 128}, {32, 256}, {40, 71}, {1, 3}, {3, 1}}) {
      expect_case(row, plain_delta_case(tokens, d, e), 2);
    }
  });
}

// The vector code of every instruction set that this machine can run, not only of the best one.
TEST(DeltaRule, EveryInstructionSet) {
  for_each_row_and_instruction_set(&Backend::delta_rule, [](const DeltaRuleKernel& row) {
    DeltaCase c = plain_delta_case(170, 48, 72);
    c.documents = {0, 70, 75, 140};
    expect_case(row, c, 2);
    expect_case(row, plain_delta_case(150, 27, 13), 1);
  });
}

TEST(DeltaRule, RunsAndDocuments) {
  const DeltaShape shape{.tokens = 700, .heads = 3, .head_dim = 12, .value_dim = 20};
  std::vector<int64_t> tiny(200);
  std::iota(tiny.begin(), tiny.end(), 251);
  const std::vector<DeltaCase> cases{
      // Two runs, as a zigzag layout gives; the first sees no document begin.
      {shape, {{0, 350}, {350, 350}}, {400, 401, 500}},
      // One that begins with a document, rows between runs, an empty run.
      {shape, {{10, 300}, {310, 0}, {400, 290}}, {10, 350, 399, 450}},
      {shape, {{0, 700}}, {64, 128, 192, 193, 256, 265, 290, 699}},
      {shape, {{0, 700}}, tiny},
      {shape, {}, {5}},
      {{.tokens = 1500, .heads = 1, .head_dim = 8, .value_dim = 4}, {{0, 1500}}, {1024, 1200}},
      {{.tokens = 1500, .heads = 1, .head_dim = 8, .value_dim = 4}, {{3, 1490}}, {}},
      {{.tokens = 100, .heads = 0, .head_dim = 8, .value_dim = 4}, {{0, 100}}, {}},
  };
  for_each_row(&Backend::delta_rule, [&](const DeltaRuleKernel& row) {
    for (DeltaCase c : cases) {
      if (test::slow_build()) c.shape.heads = std::min<int64_t>(c.shape.heads, 1);
      for (const int threads : numbers_of_threads({1, 4})) expect_case(row, c, threads);
    }
  });
}

TEST(DeltaRule, EveryGateAndBeta) {
  const auto constant = [](double value) { return [value](int64_t) { return value; }; };
  const double infinity = std::numeric_limits<double>::infinity();
  std::vector<Gates> gates, betas;
  for (const double gate : {0.0, -1e-7, -0.05, -1.5, -20.0, -100.0, -1e4, -infinity}) {
    gates.push_back(constant(gate));
  }
  gates.push_back([&](int64_t n) {  // now and then
    return n % 37 == 5 ? -1e4 : n % 53 == 1 ? -100.0 : n % 101 == 7 ? -infinity : -1e-3;
  });
  for (const double beta : {0.0, 0.3, 1.0}) betas.push_back(constant(beta));
  for_each_row(&Backend::delta_rule, [&](const DeltaRuleKernel& row) {
    for (size_t i = 0; i < gates.size(); ++i) {
      for (size_t j = 0; j < betas.size(); ++j) {
        SCOPED_TRACE("gate " + std::to_string(i) + ", beta " + std::to_string(j));
        const DeltaCase c{.shape = {.tokens = 300, .heads = 1, .head_dim = 6, .value_dim = 5},
                          .runs = {{0, 300}},
                          .gates = gates[i],
                          .betas = betas[j]};
        expect_case(row, c, 1);
      }
    }
  });
}

// The same bits from any number of threads: they share heads and runs, nothing smaller.
TEST(DeltaRule, SameBitsFromAnyNumberOfThreads) {
  for_each_row(&Backend::delta_rule, [](const DeltaRuleKernel& row) {
    DeltaCase c = plain_delta_case(500, 16, 24);
    c.runs = {{0, 200}, {200, 300}};
    const DeltaProblem p(row.dtype, c);
    Rig alone(1);
    const DeltaResults r = run_delta(alone, row, p);
    for (const int threads : numbers_of_threads({2, 3, 4})) {
      Rig rig(threads);
      const DeltaResults other = run_delta(rig, row, p);
      for (size_t i = 0; i < r.all().size(); ++i) {
        EXPECT_TRUE(same_bits(*r.all()[i], *other.all()[i])) << "result " << i;
      }
    }
  });
}

bool has_nan(const DeviceTensor& x, int64_t row) {
  const std::vector<double> of_row = values(x.view().rows(row, 1));
  return std::any_of(of_row.begin(), of_row.end(), [](double v) { return std::isnan(v); });
}

// NaN stays in its document, and a state of NaN does not matter to a run that begins with one.
TEST(DeltaRule, NanStaysInItsDocument) {
  for_each_row(&Backend::delta_rule, [](const DeltaRuleKernel& row) {
    DeltaCase c = plain_delta_case(900, 16, 16);
    c.shape.heads = 1;
    c.documents = {0, 300, 645};
    const DeltaProblem p(row.dtype, c);
    poison(p.state_in);
    set(p.k.view().rows(350, 1), [](int64_t) { return std::nan(""); });
    set(p.dout.view().rows(500, 1), [](int64_t) { return std::nan(""); });
    Rig rig(1);
    const DeltaResults r = run_delta(rig, row, p);
    for (int64_t t = 0; t < 900; ++t) {
      EXPECT_FALSE((t < 300 || t >= 645) && has_nan(r.out, t)) << "out " << t;
      EXPECT_TRUE(t < 350 || t >= 645 || has_nan(r.out, t)) << "out " << t;
      if (t < 300 || t >= 645) {
        EXPECT_FALSE(has_nan(r.dq, t) || has_nan(r.dk, t) || has_nan(r.dv, t) ||
                     has_nan(r.dlog_gate, t) || has_nan(r.dbeta, t))
            << t;
      }
      EXPECT_TRUE(t < 300 || t > 350 || (has_nan(r.dk, t) && has_nan(r.dv, t))) << t;
    }
    for (const double x : values(r.dstate_in)) EXPECT_EQ(x, 0.0);
    for (const double x : values(r.state_out)) EXPECT_TRUE(std::isfinite(x));
  });
}

// Transfers must progress within a long call also when it is a single task.
TEST(DeltaRule, PollsWithinLongTasks) {
  for_each_row(&Backend::delta_rule, [](const DeltaRuleKernel& row) {
    if (test_device().kind != DeviceKind::kCpu) return;
    DeltaCase c = plain_delta_case(6000, 64, 64);
    c.shape.heads = 1;
    const DeltaProblem p(row.dtype, c);
    Rig rig(1);
    int polls = 0;
    rig.poll = [&] { ++polls; };
    const DeltaResults r(p);
    rig.run([&](const Context& ctx) {
      row.forward(ctx, {.tokens = p.tokens(), .q = p.q, .k = p.k, .v = p.v, .out_acc = r.out});
    });
    EXPECT_GT(polls, 1);
  });
}

// What ranks will do: maps, an exchange, then forward and backward of each run with what it
// brought.
TEST(DeltaRule, MapsMakeTheWhole) {
  for_each_row(&Backend::delta_rule, [](const DeltaRuleKernel& row) {
    for (const std::vector<int64_t>& documents :
         std::vector<std::vector<int64_t>>{{900}, {}, {500, 709}}) {
      constexpr int64_t kD = 16, kDv = 24, kHeads = 2;
      DeltaCase whole = plain_delta_case(1400, kD, kDv);
      whole.documents = documents;
      whole.gates = [](int64_t n) { return 0.02 * delta_gate(n); };  // states live to be seen
      whole.betas = [](int64_t n) { return 0.1 * delta_beta(n); };
      const DeltaProblem p(row.dtype, whole);
      const std::vector<LinearRun> of_ranks{{0, 500},   {500, 0},  {500, 200},
                                            {700, 399}, {1099, 1}, {1100, 300}};
      const DeltaTokens tokens = p.tokens(of_ranks);
      const auto runs = static_cast<int64_t>(of_ranks.size());
      const Shape states{runs, kHeads, kD, kDv}, transitions{runs, kHeads, kD, kD};
      Rig rig(3);
      DeltaResults r(p);
      const DeviceTensor right = poisoned(p.acc, states), left = poisoned(p.acc, states);
      const DeviceTensor moves = poisoned(p.acc, transitions), again = poisoned(p.acc, transitions);
      rig.run([&](const Context& ctx) { row.maps(ctx, {tokens, p.k, p.v, right, moves}); });
      rig.run([&](const Context& ctx) {
        row.backward_maps(ctx, {tokens, p.q, p.k, p.dout, left, again});
      });
      EXPECT_TRUE(same_bits(moves, again));
      const DeviceTensor alone = poisoned(p.acc, states);
      rig.run([&](const Context& ctx) {
        row.backward_maps(ctx, {tokens, p.q, p.k, p.dout, alone});
      });
      EXPECT_TRUE(same_bits(left, alone));
      const std::vector<double> m = values(moves);
      const auto apply = [&](std::vector<double>& state, const std::vector<double>& sums,
                             int64_t run, bool transposed) {
        std::vector<double> next(state.size());
        for (int64_t h = 0; h < kHeads; ++h) {
          for (int64_t i = 0; i < kD; ++i) {
            for (int64_t e = 0; e < kDv; ++e) {
              const int64_t to = (h * kD + i) * kDv + e;
              double sum = sums[static_cast<size_t>(run * kHeads * kD * kDv + to)];
              for (int64_t j = 0; j < kD; ++j) {
                const int64_t row_of = transposed ? j : i, column = transposed ? i : j;
                sum += m[static_cast<size_t>(((run * kHeads + h) * kD + row_of) * kD + column)] *
                       state[static_cast<size_t>((h * kD + j) * kDv + e)];
              }
              next[static_cast<size_t>(to)] = sum;
            }
          }
        }
        state = next;
      };
      const DeviceTensor entering(p.acc, states), gradients(p.acc, states),
          leaving = poisoned(p.acc, states), reaching = poisoned(p.acc, states);
      const auto put = [&](const DeviceTensor& to, int64_t run, const std::vector<double>& state) {
        set(to.view().rows(run, 1), [&](int64_t n) { return state[static_cast<size_t>(n)]; });
      };
      std::vector<double> state = values(p.state_in), gradient = values(p.dstate_out);
      for (int64_t i = 0; i < runs; ++i) {
        put(entering, i, state);
        apply(state, values(right), i, false);
        put(gradients, runs - 1 - i, gradient);
        apply(gradient, values(left), runs - 1 - i, true);
      }
      rig.run([&](const Context& ctx) {
        row.forward(ctx, {.tokens = tokens,
                          .q = p.q,
                          .k = p.k,
                          .v = p.v,
                          .state_in = entering,
                          .out_acc = r.out,
                          .state_out = leaving});
      });
      rig.run([&](const Context& ctx) {
        row.backward(ctx, {.tokens = tokens,
                           .q = p.q,
                           .k = p.k,
                           .v = p.v,
                           .dout = p.dout,
                           .state_in = entering,
                           .dstate_out = gradients,
                           .dq_acc = r.dq,
                           .dk_acc = r.dk,
                           .dv_acc = r.dv,
                           .dlog_gate = r.dlog_gate,
                           .dbeta = r.dbeta,
                           .dstate_in = reaching});
      });
      put(r.state_out, 0, state);
      put(r.dstate_in, 0, gradient);
      const DeltaTruth truth = p.truth();
      expect_delta(p, r, truth);
      // The last run's state and the first one's gradient are those of the whole, too.
      expect_near(leaving.view().rows(runs - 1, 1), truth.state_out, delta_tolerance(row.dtype),
                  "state after the last run");
      expect_near(reaching.view().rows(0, 1), truth.dstate_in, delta_tolerance(row.dtype),
                  "gradient before the first run");
    }
  });
}

// The gradients of the reference, each against a central difference of its own outputs.
TEST(DeltaRule, ReferenceGradientsAreDifferences) {
  const DeltaShape shape{.tokens = 9, .heads = 2, .head_dim = 3, .value_dim = 2};
  const std::vector<LinearRun> runs{{0, 5}, {5, 4}};
  const std::vector<int64_t> documents{3};
  const auto random_values = [](int64_t n, uint64_t seed) {
    return values(random(DType::kF64, {n}, seed));
  };
  DeltaOperands x{.q = random_values(54, 1),
                  .k = random_values(54, 2),
                  .v = random_values(36, 3),
                  .dout = random_values(36, 4),
                  .log_gate = random_values(18, 5),
                  .beta = random_values(18, 8),
                  .state_in = random_values(24, 6),
                  .dstate_out = random_values(24, 7)};
  for (double& gate : x.log_gate) gate = -0.3 * gate * gate;
  for (double& beta : x.beta) beta = 0.3 + 0.1 * beta;
  const auto objective = [&] {
    const DeltaTruth y = delta_rule_truth(shape, runs, documents, x);
    return std::inner_product(y.out.begin(), y.out.end(), x.dout.begin(), 0.0) +
           std::inner_product(y.state_out.begin(), y.state_out.end(), x.dstate_out.begin(), 0.0);
  };
  const DeltaTruth truth = delta_rule_truth(shape, runs, documents, x);
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
  judge(x.beta, truth.dbeta, "dbeta");
  judge(x.state_in, truth.dstate_in, "dstate_in");
}

}  // namespace
}  // namespace longhaul::kernels::testing
