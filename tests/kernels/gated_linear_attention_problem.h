// One call of gated linear attention with random operands, for the tests of every row of the table.
#pragma once

#include <algorithm>

#include "tests/kernels/gated_linear_attention_reference.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {

// Bound for the error norm relative to the truth, as in linear_attention_problem.h.
inline double gated_tolerance(DType dtype) { return 40 * epsilon(accumulator(dtype)); }

// log_gate of element n in row-major order.
using Gates = std::function<double(int64_t)>;

// From almost 0 to some that forget within a few tokens.
inline double mixed_gate(int64_t n) {
  const double x = random_normal({.seed = 91, .stream = 3}, static_cast<uint64_t>(n));
  return -0.2 * x * x;
}

struct GatedCase {
  GatedShape shape;
  std::vector<LinearRun> runs;
  std::vector<int64_t> documents = {};
  Gates gates = mixed_gate;

  Shape states() const {
    return {static_cast<int64_t>(runs.size()), shape.heads, shape.head_dim, shape.value_dim};
  }
};

inline GatedCase plain_gated_case(int64_t tokens, int64_t head_dim, int64_t value_dim) {
  return {.shape = {.tokens = tokens, .heads = 2, .head_dim = head_dim, .value_dim = value_dim},
          .runs = {{0, tokens}}};
}

struct GatedProblem {
  GatedProblem(DType dtype_, const GatedCase& c_)
      : c(c_),
        dtype(dtype_),
        acc(accumulator(dtype_)),
        q(dtype, {c.shape.tokens, c.shape.heads, c.shape.head_dim}),
        k(dtype, q.view().shape()),
        v(dtype, {c.shape.tokens, c.shape.heads, c.shape.value_dim}),
        dout(dtype, v.view().shape()),
        log_gate(acc, q.view().shape()),
        state_in(acc, c.states()),
        dstate_out(acc, c.states()) {
    uint64_t seed = 0;
    for (const Gapped* x : {&q, &k, &v, &dout}) fill_random(x->view(), ++seed);
    for (const DeviceTensor* x : {&state_in, &dstate_out}) fill_random(x->view(), ++seed);
    set(log_gate, c.gates);
  }

  GatedTokens tokens() const { return tokens(c.runs); }
  GatedTokens tokens(std::span<const LinearRun> runs) const {
    return {.runs = runs, .document_begins = c.documents, .log_gate = log_gate};
  }

  // Operands of rows that belong to no run become NaN.
  void poison_outside() const {
    std::vector<bool> inside(static_cast<size_t>(c.shape.tokens));
    for (const LinearRun& run : c.runs) std::fill_n(inside.begin() + run.begin, run.length, true);
    for (int64_t t = 0; t < c.shape.tokens; ++t) {
      if (inside[static_cast<size_t>(t)]) continue;
      for (const TensorView& x : {q.view(), k.view(), v.view(), dout.view(), log_gate.view()}) {
        set(x.rows(t, 1), [](int64_t) { return std::nan(""); });
      }
    }
  }

  GatedTruth truth() const {
    return gated_linear_attention_truth(c.shape, c.runs, c.documents,
                                        {.q = values(q),
                                         .k = values(k),
                                         .v = values(v),
                                         .dout = values(dout),
                                         .log_gate = values(log_gate),
                                         .state_in = values(state_in),
                                         .dstate_out = values(dstate_out)});
  }

  GatedCase c;
  DType dtype, acc;
  Gapped q, k, v, dout;
  DeviceTensor log_gate, state_in, dstate_out;
};

struct GatedResults {
  explicit GatedResults(const GatedProblem& p)
      : out(poisoned(p.acc, p.v.view().shape())),
        state_out(poisoned(p.acc, p.c.states())),
        dq(p.acc, p.q.view().shape()),
        dk(p.acc, p.q.view().shape()),
        dv(p.acc, p.v.view().shape()),
        dlog_gate(poisoned(p.acc, p.q.view().shape())),
        dstate_in(poisoned(p.acc, p.c.states())) {}

  std::vector<const DeviceTensor*> all() const {
    return {&out, &state_out, &dq, &dk, &dv, &dlog_gate, &dstate_in};
  }

  DeviceTensor out, state_out, dq, dk, dv, dlog_gate, dstate_in;
};

inline GatedResults run_gated(Rig& rig, const GatedLinearAttentionKernel& row,
                              const GatedProblem& p) {
  GatedResults r(p);
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
                       .dstate_in = r.dstate_in});
  });
  rig.run([&](const Context& ctx) {
    row.gate_gradient(ctx, {.tokens = p.tokens(),
                            .q = p.q,
                            .k = p.k,
                            .dq = r.dq,
                            .dk = r.dk,
                            .state_in = p.state_in,
                            .dstate_in = r.dstate_in,
                            .dlog_gate = r.dlog_gate});
  });
  return r;
}

// What dlog_gate is added up from.
inline double gate_terms(const GatedProblem& p, const GatedTruth& truth) {
  std::vector<double> terms = truth.dq;
  const std::vector<double> q = values(p.q);
  for (size_t i = 0; i < terms.size(); ++i) {
    terms[i] = std::isnan(q[i]) ? 0.0 : terms[i] * q[i];
  }
  return norm(terms);
}

inline void expect_gated(const GatedProblem& p, const GatedResults& r, const GatedTruth& truth) {
  const double limit = gated_tolerance(p.dtype);
  // Decays that are too small for normal numbers are 0.
  const double tiny = (p.acc == DType::kF32 ? 100.0 * std::numeric_limits<float>::min()
                                            : 100.0 * std::numeric_limits<double>::min()) /
                      limit;
  expect_near(r.out, truth.out, limit, "out", tiny);
  expect_near(r.state_out, truth.state_out, limit, "state_out", tiny);
  expect_near(r.dq, truth.dq, limit, "dq", tiny);
  expect_near(r.dk, truth.dk, limit, "dk", tiny);
  expect_near(r.dv, truth.dv, limit, "dv", tiny);
  expect_near(r.dstate_in, truth.dstate_in, limit, "dstate_in", tiny);
  expect_near(r.dlog_gate, truth.dlog_gate, limit, "dlog_gate", gate_terms(p, truth));
}

}  // namespace longhaul::kernels::testing
