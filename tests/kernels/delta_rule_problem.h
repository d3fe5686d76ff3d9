// One call of the gated delta rule with random operands, for the tests of every row of the table.
#pragma once

#include <algorithm>

#include "tests/kernels/delta_rule_reference.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {

// Bound for the error norm relative to the truth, as in linear_attention_problem.h.
inline double delta_tolerance(DType dtype) { return 40 * epsilon(accumulator(dtype)); }

// Of token and head n, in row-major order.
using Gates = std::function<double(int64_t)>;

inline double delta_gate(int64_t n) {
  const double x = random_normal({.seed = 91, .stream = 3}, static_cast<uint64_t>(n));
  return -0.05 * x * x;
}
// In [0, 1], both ends among them.
inline double delta_beta(int64_t n) {
  const double x = random_normal({.seed = 92, .stream = 3}, static_cast<uint64_t>(n));
  return std::clamp(0.5 + 0.5 * x, 0.0, 1.0);
}

struct DeltaCase {
  DeltaShape shape;
  std::vector<LinearRun> runs;
  std::vector<int64_t> documents = {};
  Gates gates = delta_gate;
  Gates betas = delta_beta;

  Shape states() const { return states(shape.value_dim); }
  Shape states(int64_t columns) const {
    return {static_cast<int64_t>(runs.size()), shape.heads, shape.head_dim, columns};
  }
};

inline DeltaCase plain_delta_case(int64_t tokens, int64_t head_dim, int64_t value_dim) {
  return {.shape = {.tokens = tokens, .heads = 2, .head_dim = head_dim, .value_dim = value_dim},
          .runs = {{0, tokens}}};
}

struct DeltaProblem {
  DeltaProblem(DType dtype_, const DeltaCase& c_)
      : c(c_),
        dtype(dtype_),
        acc(accumulator(dtype_)),
        q(dtype, {c.shape.tokens, c.shape.heads, c.shape.head_dim}),
        k(dtype, q.view().shape()),
        v(dtype, {c.shape.tokens, c.shape.heads, c.shape.value_dim}),
        dout(dtype, v.view().shape()),
        log_gate(acc, {c.shape.tokens, c.shape.heads}),
        beta(acc, {c.shape.tokens, c.shape.heads}),
        state_in(acc, c.states()),
        dstate_out(acc, c.states()) {
    uint64_t seed = 0;
    for (const Gapped* x : {&q, &v, &dout}) fill_random(x->view(), ++seed);
    fill_random(k.view(), ++seed);
    normalise_keys();
    for (const DeviceTensor* x : {&state_in, &dstate_out}) fill_random(x->view(), ++seed);
    set(log_gate, c.gates);
    set(beta, c.betas);
  }

  // Keys have length 1, as usual: longer ones, with beta near 1, let states and errors grow.
  void normalise_keys() const {
    std::vector<double> keys = values(k);
    const auto dim = static_cast<size_t>(c.shape.head_dim);
    for (size_t at = 0; at < keys.size(); at += dim) {
      const double length = norm({keys.data() + at, keys.data() + at + dim});
      for (size_t i = 0; i < dim; ++i) keys[at + i] /= length;
    }
    set(k.view(), [&](int64_t n) { return keys[static_cast<size_t>(n)]; });
  }

  DeltaTokens tokens() const { return tokens(c.runs); }
  DeltaTokens tokens(std::span<const LinearRun> runs) const {
    return {.runs = runs, .document_begins = c.documents, .log_gate = log_gate, .beta = beta};
  }

  // Operands of rows that belong to no run become NaN.
  void poison_outside() const {
    std::vector<bool> inside(static_cast<size_t>(c.shape.tokens));
    for (const LinearRun& run : c.runs) std::fill_n(inside.begin() + run.begin, run.length, true);
    for (int64_t t = 0; t < c.shape.tokens; ++t) {
      if (inside[static_cast<size_t>(t)]) continue;
      for (const TensorView& x :
           {q.view(), k.view(), v.view(), dout.view(), log_gate.view(), beta.view()}) {
        set(x.rows(t, 1), [](int64_t) { return std::nan(""); });
      }
    }
  }

  DeltaTruth truth() const {
    return delta_rule_truth(c.shape, c.runs, c.documents,
                            {.q = values(q),
                             .k = values(k),
                             .v = values(v),
                             .dout = values(dout),
                             .log_gate = values(log_gate),
                             .beta = values(beta),
                             .state_in = values(state_in),
                             .dstate_out = values(dstate_out)});
  }

  DeltaCase c;
  DType dtype, acc;
  Gapped q, k, v, dout;
  DeviceTensor log_gate, beta, state_in, dstate_out;
};

struct DeltaResults {
  explicit DeltaResults(const DeltaProblem& p)
      : out(poisoned(p.acc, p.v.view().shape())),
        state_out(poisoned(p.acc, p.c.states())),
        dq(p.acc, p.q.view().shape()),
        dk(p.acc, p.q.view().shape()),
        dv(p.acc, p.v.view().shape()),
        dlog_gate(poisoned(p.acc, p.beta.view().shape())),
        dbeta(poisoned(p.acc, p.beta.view().shape())),
        dstate_in(poisoned(p.acc, p.c.states())) {}

  std::vector<const DeviceTensor*> all() const {
    return {&out, &state_out, &dq, &dk, &dv, &dlog_gate, &dbeta, &dstate_in};
  }

  DeviceTensor out, state_out, dq, dk, dv, dlog_gate, dbeta, dstate_in;
};

inline DeltaResults run_delta(Rig& rig, const DeltaRuleKernel& row, const DeltaProblem& p) {
  DeltaResults r(p);
  EXPECT_TRUE(row.supports(p.c.shape.head_dim, p.c.shape.value_dim));
  rig.run([&](const Context& ctx) {
    row.forward(ctx, {.tokens = p.tokens(),
                      .q = p.q,
                      .k = p.k,
                      .v = p.v,
                      .state_in = p.state_in,
                      .out_acc = r.out,
                      .state_out = r.state_out});
  });
  rig.run([&](const Context& ctx) {
    row.backward(ctx, {.tokens = p.tokens(),
                       .q = p.q,
                       .k = p.k,
                       .v = p.v,
                       .dout = p.dout,
                       .state_in = p.state_in,
                       .dstate_out = p.dstate_out,
                       .dq_acc = r.dq,
                       .dk_acc = r.dk,
                       .dv_acc = r.dv,
                       .dlog_gate = r.dlog_gate,
                       .dbeta = r.dbeta,
                       .dstate_in = r.dstate_in});
  });
  return r;
}

inline void expect_delta(const DeltaProblem& p, const DeltaResults& r, const DeltaTruth& truth) {
  const double limit = delta_tolerance(p.dtype);
  // Decays that are too small for normal numbers are 0.
  const double tiny = (p.acc == DType::kF32 ? 100.0 * std::numeric_limits<float>::min()
                                            : 100.0 * std::numeric_limits<double>::min()) /
                      limit;
  // What dlog_gate is added up from: products along a whole row.
  const double terms = norm(truth.dq) * std::sqrt(static_cast<double>(p.c.shape.head_dim));
  expect_near(r.out, truth.out, limit, "out", tiny);
  expect_near(r.state_out, truth.state_out, limit, "state_out", tiny);
  expect_near(r.dq, truth.dq, limit, "dq", tiny);
  expect_near(r.dk, truth.dk, limit, "dk", tiny);
  expect_near(r.dv, truth.dv, limit, "dv", tiny);
  expect_near(r.dbeta, truth.dbeta, limit, "dbeta", tiny);
  expect_near(r.dlog_gate, truth.dlog_gate, limit, "dlog_gate", terms + tiny);
  expect_near(r.dstate_in, truth.dstate_in, limit, "dstate_in", tiny);
}

}  // namespace longhaul::kernels::testing
