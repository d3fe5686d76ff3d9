// Linear attention, every row of every table, against the recurrence in fp64: shapes, decays, runs,
// documents, threads and instruction sets; that parts of a sequence, and parts of the work, make up
// the whole; and what must not leak.
#include "kernels/linear_attention.h"

#include <algorithm>
#include <numeric>

#include "tests/kernels/instruction_sets.h"
#include "tests/kernels/linear_attention_reference.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {
namespace {

// Bound for the error norm relative to the truth. Sums of D products and of some hundred tokens err
// by a few units where rounding errors are independent; 40 leaves no room for a token that is
// missing or decayed once too often.
double tolerance(DType dtype) { return 40 * epsilon(accumulator(dtype)); }

struct Case {
  LinearShape shape;
  std::vector<double> slopes;
  std::vector<LinearRun> runs;
  std::vector<int64_t> documents = {};

  LinearTokens tokens() const {
    return {.runs = runs, .document_begins = documents, .slopes = slopes};
  }
  Shape states() const {
    return {static_cast<int64_t>(runs.size()), shape.heads, shape.head_dim, shape.value_dim};
  }
};

Case plain(int64_t tokens, int64_t head_dim, int64_t value_dim) {
  return {.shape = {.tokens = tokens, .heads = 2, .head_dim = head_dim, .value_dim = value_dim},
          .slopes = {0.3, 0.004},
          .runs = {{0, tokens}}};
}

struct Problem {
  Problem(DType dtype_, const Case& c_)
      : c(c_),
        dtype(dtype_),
        acc(accumulator(dtype_)),
        q(dtype, {c.shape.tokens, c.shape.heads, c.shape.head_dim}),
        k(dtype, q.view().shape()),
        v(dtype, {c.shape.tokens, c.shape.heads, c.shape.value_dim}),
        dout(dtype, v.view().shape()),
        state_in(acc, c.states()),
        dstate_out(acc, c.states()) {
    uint64_t seed = 0;
    for (const Gapped* x : {&q, &k, &v, &dout}) fill_random(x->view(), ++seed);
    for (const Tensor* x : {&state_in, &dstate_out}) fill_random(x->view(), ++seed);
  }

  LinearTruth truth() const {
    return linear_attention_truth(c.shape, c.tokens(),
                                  {.q = values(q),
                                   .k = values(k),
                                   .v = values(v),
                                   .dout = values(dout),
                                   .state_in = values(state_in),
                                   .dstate_out = values(dstate_out)});
  }

  Case c;
  DType dtype, acc;
  Gapped q, k, v, dout;
  Tensor state_in, dstate_out;
};

struct Results {
  explicit Results(const Problem& p)
      : out(poisoned(p.acc, p.v.view().shape())),
        state_out(poisoned(p.acc, p.c.states())),
        dq(p.acc, p.q.view().shape()),
        dk(p.acc, p.q.view().shape()),
        dv(p.acc, p.v.view().shape()),
        dstate_in(poisoned(p.acc, p.c.states())) {}

  std::vector<const Tensor*> all() const { return {&out, &state_out, &dq, &dk, &dv, &dstate_in}; }

  Tensor out, state_out, dq, dk, dv, dstate_in;
};

Results run(Rig& rig, const LinearAttentionKernel& row, const Problem& p) {
  Results r(p);
  EXPECT_TRUE(row.supports(p.c.shape.head_dim, p.c.shape.value_dim));
  rig.run([&](const Context& ctx) {
    row.forward(ctx, {.tokens = p.c.tokens(),
                      .q = p.q,
                      .k = p.k,
                      .v = p.v,
                      .state_in = p.state_in,
                      .out_acc = r.out,
                      .state_out = r.state_out});
  });
  rig.run([&](const Context& ctx) {
    row.backward(ctx, {.tokens = p.c.tokens(),
                       .q = p.q,
                       .k = p.k,
                       .v = p.v,
                       .dout = p.dout,
                       .state_in = p.state_in,
                       .dstate_out = p.dstate_out,
                       .dq_acc = r.dq,
                       .dk_acc = r.dk,
                       .dv_acc = r.dv,
                       .dstate_in = r.dstate_in});
  });
  return r;
}

void expect_results(const Results& r, const LinearTruth& truth, double limit) {
  expect_near(r.out, truth.out, limit, "out");
  expect_near(r.state_out, truth.state_out, limit, "state_out");
  expect_near(r.dq, truth.dq, limit, "dq");
  expect_near(r.dk, truth.dk, limit, "dk");
  expect_near(r.dv, truth.dv, limit, "dv");
  expect_near(r.dstate_in, truth.dstate_in, limit, "dstate_in");
}

// Rows outside runs hold what they held: zeros, for a comparison with the truth.
void clear_outside(const Case& c, const Tensor& out) {
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

void expect_case(const LinearAttentionKernel& row, const Case& c, int threads) {
  SCOPED_TRACE("T " + std::to_string(c.shape.tokens) + ", D " + std::to_string(c.shape.head_dim) +
               ", Dv " + std::to_string(c.shape.value_dim) + ", threads " +
               std::to_string(threads));
  Rig rig(threads);
  const Problem p(row.dtype, c);
  const Results r = run(rig, row, p);
  clear_outside(c, r.out);
  expect_results(r, p.truth(), tolerance(row.dtype));
  for (const Gapped* x : {&p.q, &p.k, &p.v, &p.dout}) EXPECT_TRUE(x->gaps_intact());
  const Results again = run(rig, row, p);
  clear_outside(c, again.out);
  for (size_t i = 0; i < r.all().size(); ++i) {
    EXPECT_TRUE(same_bits(*r.all()[i], *again.all()[i])) << "result " << i << " of a second run";
  }
}

TEST(LinearAttention, EveryLength) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    for (const int64_t tokens : {0, 1, 2, 63, 64, 65, 127, 200, 523}) {
      for (const int threads : {1, 3}) expect_case(row, plain(tokens, 16, 24), threads);
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
      expect_case(row, plain(137, d, e), 2);
    }
  });
}

// The vector code of every instruction set that this machine can run, not only of the best one.
TEST(LinearAttention, EveryInstructionSet) {
  for_each_instruction_set([] {
    for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
      Case c = plain(300, 48, 72);
      c.documents = {0, 70, 75, 210};
      for (const int threads : {1, 3}) expect_case(row, c, threads);
      expect_case(row, plain(150, 27, 13), 1);
    });
  });
}

TEST(LinearAttention, RunsAndDocuments) {
  const LinearShape shape{.tokens = 700, .heads = 3, .head_dim = 12, .value_dim = 20};
  const std::vector<double> slopes{0.7, 0.01, 0.0};
  std::vector<int64_t> tiny(200);
  std::iota(tiny.begin(), tiny.end(), 251);
  const std::vector<Case> cases{
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
    for (const Case& c : cases) {
      for (const int threads : {1, 3, 5}) expect_case(row, c, threads);
    }
  });
}

// Decays from none to one that nothing survives, over blocks and blocks.
TEST(LinearAttention, EveryDecay) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    for (const double slope : {0.0, 1e-7, 0.05, 1.5, 20.0, 700.0, 1e5}) {
      SCOPED_TRACE(slope);
      const Case c{.shape = {.tokens = 5000, .heads = 1, .head_dim = 6, .value_dim = 5},
                   .slopes = {slope},
                   .runs = {{0, 5000}}};
      expect_case(row, c, 1);
      expect_case(row, c, 2);
    }
  });
}

// A power of the decay that is rounded once and applied block after block would change the decay:
// a^64 is as far from an f32 as it can be, 2^-25, which 400 blocks turn into a relative 1.2e-5.
// Sums, whose rounding errors are independent, err by some 20 2^-25, or 6e-7.
TEST(LinearAttention, SlowDecayOverManyBlocks) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    if (accumulator(row.dtype) != DType::kF32) return;
    const Case c{.shape = {.tokens = 64 * 400, .heads = 1, .head_dim = 4, .value_dim = 4},
                 .slopes = {2.5 * 0x1p-24 / 64},
                 .runs = {{0, 64 * 400}}};
    Rig rig(1);
    const Problem p(row.dtype, c);
    // Most of the results come from what enters, but enough is added for errors to be independent.
    for (const Tensor* x : {&p.state_in, &p.dstate_out}) {
      set(*x, [&](int64_t n) { return 1000.0 + 90.0 * static_cast<double>(n); });
    }
    const Results r = run(rig, row, p);
    const LinearTruth truth = p.truth();
    expect_near(r.state_out, truth.state_out, 2e-6, "state_out");
    expect_near(r.dstate_in, truth.dstate_in, 2e-6, "dstate_in");
  });
}

// The same tokens in several calls, each continuing the one before, or in several runs whose states
// are handed on by their maps.
TEST(LinearAttention, PartsMakeTheWhole) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    Case whole = plain(611, 16, 24);
    whole.documents = {300, 550};
    const Problem p(row.dtype, whole);
    const LinearTruth truth = p.truth();
    const double limit = row.dtype == DType::kF64 ? 1e-12 : tolerance(row.dtype);
    Rig rig(2);
    const std::vector<int64_t> borders{0, 1, 250, 300, 420, 611};
    Results r(p);
    Tensor state(p.acc, whole.states());
    std::vector<Tensor> states;  // that enter the parts
    set(state, [&](int64_t n) { return values(p.state_in)[static_cast<size_t>(n)]; });
    const auto part_of_case = [&](size_t i, Case& c) {
      c = whole;
      c.runs = {{borders[i], borders[i + 1] - borders[i]}};
    };
    for (size_t i = 0; i + 1 < borders.size(); ++i) {
      Case c;
      part_of_case(i, c);
      states.emplace_back(p.acc, whole.states());
      set(states.back(), [&](int64_t n) { return values(state)[static_cast<size_t>(n)]; });
      rig.run([&](const Context& ctx) {
        row.forward(ctx, {.tokens = c.tokens(),
                          .q = p.q,
                          .k = p.k,
                          .v = p.v,
                          .state_in = states.back(),
                          .out_acc = r.out,
                          .state_out = state});
      });
    }
    expect_near(r.out, truth.out, limit, "out");
    expect_near(state, truth.state_out, limit, "state_out");
    set(state, [&](int64_t n) { return values(p.dstate_out)[static_cast<size_t>(n)]; });
    for (size_t i = borders.size() - 1; i-- > 0;) {
      Case c;
      part_of_case(i, c);
      rig.run([&](const Context& ctx) {
        row.backward(ctx, {.tokens = c.tokens(),
                           .q = p.q,
                           .k = p.k,
                           .v = p.v,
                           .dout = p.dout,
                           .state_in = states[i],
                           .dstate_out = state,  // and back: states may share their memory
                           .dq_acc = r.dq,
                           .dk_acc = r.dk,
                           .dv_acc = r.dv,
                           .dstate_in = state});
      });
    }
    expect_near(state, truth.dstate_in, limit, "dstate_in");
    expect_near(r.dq, truth.dq, limit, "dq");
    expect_near(r.dk, truth.dk, limit, "dk");
    expect_near(r.dv, truth.dv, limit, "dv");
  });
}

// What ranks will do: maps, an exchange, and meanwhile all that does not need the states.
TEST(LinearAttention, MapsAndAdditionsMakeTheWhole) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    Case whole = plain(1400, 16, 24);
    whole.documents = {900};
    const Problem p(row.dtype, whole);
    const LinearTruth truth = p.truth();
    const double limit = row.dtype == DType::kF64 ? 1e-12 : tolerance(row.dtype);
    Case c = whole;
    c.runs = {{0, 500}, {500, 0}, {500, 200}, {700, 400}, {1100, 300}};
    const auto runs = static_cast<int64_t>(c.runs.size());
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(threads);
      Rig rig(threads);
      Results r(p);
      const Tensor right = poisoned(p.acc, c.states()), left = poisoned(p.acc, c.states());
      const Tensor right_decay = poisoned(p.acc, {runs, 2}),
                   left_decay = poisoned(p.acc, {runs, 2});
      rig.run([&](const Context& ctx) {
        row.maps(ctx, {c.tokens(), p.k, p.v, right, right_decay});
        row.backward_maps(ctx, {c.tokens(), p.q, p.dout, left, left_decay});
      });
      EXPECT_TRUE(same_bits(right_decay, left_decay));
      // state_out = e^log_decay state_in + sums, run after run.
      const int64_t elements = 16 * 24, per_run = 2 * elements;
      const std::vector<double> decay = values(right_decay);
      const auto apply = [&](std::vector<double>& state, const std::vector<double>& sums,
                             int64_t of_run) {
        for (int64_t n = 0; n < per_run; ++n) {
          const double log_decay = decay[static_cast<size_t>(of_run * 2 + n / elements)];
          state[static_cast<size_t>(n)] = std::exp(log_decay) * state[static_cast<size_t>(n)] +
                                          sums[static_cast<size_t>(of_run * per_run + n)];
        }
      };
      const Tensor entering(p.acc, c.states()), gradients(p.acc, c.states());
      const auto put = [&](const Tensor& to, int64_t of_run, const std::vector<double>& state) {
        set(to.view().rows(of_run, 1), [&](int64_t n) { return state[static_cast<size_t>(n)]; });
      };
      std::vector<double> state = values(p.state_in), gradient = values(p.dstate_out);
      for (int64_t i = 0; i < runs; ++i) {
        put(entering, i, state);
        apply(state, values(right), i);
        put(gradients, runs - 1 - i, gradient);
        apply(gradient, values(left), runs - 1 - i);
      }
      rig.run([&](const Context& ctx) {
        row.forward(ctx, {.tokens = c.tokens(), .q = p.q, .k = p.k, .v = p.v, .out_acc = r.out});
      });
      rig.run([&](const Context& ctx) { row.add_out(ctx, {c.tokens(), p.q, entering, r.out}); });
      rig.run([&](const Context& ctx) {
        row.backward(ctx, {.tokens = c.tokens(),
                           .q = p.q,
                           .k = p.k,
                           .v = p.v,
                           .dout = p.dout,
                           .dq_acc = r.dq,
                           .dk_acc = r.dk,
                           .dv_acc = r.dv});
      });
      rig.run([&](const Context& ctx) { row.add_dq(ctx, {c.tokens(), p.dout, entering, r.dq}); });
      rig.run([&](const Context& ctx) {
        row.add_dk_dv(ctx, {c.tokens(), p.k, p.v, gradients, r.dk, r.dv});
      });
      expect_near(r.out, truth.out, limit, "out");
      expect_near(r.dq, truth.dq, limit, "dq");
      expect_near(r.dk, truth.dk, limit, "dk");
      expect_near(r.dv, truth.dv, limit, "dv");
      Tensor last(p.acc, whole.states());
      put(last, 0, state);
      expect_near(last, truth.state_out, limit, "state after the last run");
      put(last, 0, gradient);
      expect_near(last, truth.dstate_in, limit, "gradient before the first run");
    }
  });
}

// Bidirectional attention without decay, from maps and additions: a run per document.
TEST(LinearAttention, BidirectionalWithoutDecay) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    const LinearShape shape{.tokens = 210, .heads = 2, .head_dim = 9, .value_dim = 14};
    const Case c{.shape = shape, .slopes = {0, 0}, .runs = {{0, 130}, {130, 80}}};
    const Problem p(row.dtype, c);
    Rig rig(2);
    const Tensor s(p.acc, c.states()), g(p.acc, c.states()), log_decay(p.acc, {2, 2});
    const Results r(p);
    set(r.out, [](int64_t) { return 0.0; });
    rig.run([&](const Context& ctx) {
      row.maps(ctx, {c.tokens(), p.k, p.v, s, log_decay});
      row.backward_maps(ctx, {c.tokens(), p.q, p.dout, g, log_decay});
    });
    rig.run([&](const Context& ctx) { row.add_out(ctx, {c.tokens(), p.q, s, r.out}); });
    rig.run([&](const Context& ctx) { row.add_dq(ctx, {c.tokens(), p.dout, s, r.dq}); });
    rig.run([&](const Context& ctx) { row.add_dk_dv(ctx, {c.tokens(), p.k, p.v, g, r.dk, r.dv}); });
    // o_i = sum over j of (q_i . k_j) v_j, and its gradients, within documents.
    const std::vector<double> q = values(p.q), k = values(p.k), v = values(p.v), o = values(p.dout);
    std::vector<double> out(v.size()), dq(q.size()), dk(q.size()), dv(v.size());
    const auto at = [&](int64_t t, int64_t h, int64_t dim, int64_t x) {
      return static_cast<size_t>((t * shape.heads + h) * dim + x);
    };
    for (const LinearRun& run : c.runs) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        for (int64_t i = run.begin; i < run.begin + run.length; ++i) {
          for (int64_t j = run.begin; j < run.begin + run.length; ++j) {
            double score = 0, dscore = 0;
            for (int64_t x = 0; x < 9; ++x) score += q[at(i, h, 9, x)] * k[at(j, h, 9, x)];
            for (int64_t x = 0; x < 14; ++x) {
              out[at(i, h, 14, x)] += score * v[at(j, h, 14, x)];
              dv[at(j, h, 14, x)] += score * o[at(i, h, 14, x)];
              dscore += o[at(i, h, 14, x)] * v[at(j, h, 14, x)];
            }
            for (int64_t x = 0; x < 9; ++x) {
              dq[at(i, h, 9, x)] += dscore * k[at(j, h, 9, x)];
              dk[at(j, h, 9, x)] += dscore * q[at(i, h, 9, x)];
            }
          }
        }
      }
    }
    expect_near(r.out, out, tolerance(row.dtype), "out");
    expect_near(r.dq, dq, tolerance(row.dtype), "dq");
    expect_near(r.dk, dk, tolerance(row.dtype), "dk");
    expect_near(r.dv, dv, tolerance(row.dtype), "dv");
  });
}

// Gradients are added to what is there.
TEST(LinearAttention, GradientsAccumulate) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    const Problem p(row.dtype, plain(100, 20, 20));
    Rig rig(1);
    const Results once = run(rig, row, p);
    const Results twice(p);
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
      expect_near(*b, doubled, 0, "twice");
    }
  });
}

bool has_nan(const Tensor& x, int64_t row) {
  const std::vector<double> of_row = values(x.view().rows(row, 1));
  return std::any_of(of_row.begin(), of_row.end(), [](double v) { return std::isnan(v); });
}

// NaN stays in its document, and a state of NaN does not matter to a run that begins with one.
TEST(LinearAttention, NanStaysInItsDocument) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    for (const int threads : {1, 3}) {
      Case c = plain(900, 16, 16);
      c.shape.heads = 1;
      c.slopes = {0.01};
      c.documents = {0, 300, 640};
      Problem p(row.dtype, c);
      std::memset(p.state_in.view().raw(), 0xff, static_cast<size_t>(p.state_in.view().bytes()));
      set(p.k.view().rows(350, 1), [](int64_t) { return std::nan(""); });
      set(p.dout.view().rows(500, 1), [](int64_t) { return std::nan(""); });
      Rig rig(threads);
      const Results r = run(rig, row, p);
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
    Case c = plain(9000, 64, 64);
    c.shape.heads = 1;
    c.slopes = {0.01};
    const Problem p(row.dtype, c);
    Rig rig(1);
    int polls = 0;
    rig.poll = [&] { ++polls; };
    const Results r(p);
    rig.run([&](const Context& ctx) {
      row.forward(ctx, {.tokens = c.tokens(), .q = p.q, .k = p.k, .v = p.v, .out_acc = r.out});
    });
    EXPECT_GT(polls, 1);
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
