// One call of linear attention with random operands, for the tests of every row of the table.
#pragma once

#include "tests/kernels/linear_attention_reference.h"
#include "tests/kernels/reference.h"

namespace longhaul::kernels::testing {

// Bound for the error norm relative to the truth. Sums of D products and of some hundred tokens err
// by a few units where rounding errors are independent; 40 leaves no room for a token that is
// missing or decayed once too often.
inline double linear_tolerance(DType dtype) { return 40 * epsilon(accumulator(dtype)); }

struct LinearCase {
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

inline LinearCase plain_case(int64_t tokens, int64_t head_dim, int64_t value_dim) {
  return {.shape = {.tokens = tokens, .heads = 2, .head_dim = head_dim, .value_dim = value_dim},
          .slopes = {0.3, 0.004},
          .runs = {{0, tokens}}};
}

struct LinearProblem {
  LinearProblem(DType dtype_, const LinearCase& c_)
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
    for (const DeviceTensor* x : {&state_in, &dstate_out}) fill_random(x->view(), ++seed);
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

  LinearCase c;
  DType dtype, acc;
  Gapped q, k, v, dout;
  DeviceTensor state_in, dstate_out;
};

struct LinearResults {
  explicit LinearResults(const LinearProblem& p)
      : out(poisoned(p.acc, p.v.view().shape())),
        state_out(poisoned(p.acc, p.c.states())),
        dq(p.acc, p.q.view().shape()),
        dk(p.acc, p.q.view().shape()),
        dv(p.acc, p.v.view().shape()),
        dstate_in(poisoned(p.acc, p.c.states())) {}

  std::vector<const DeviceTensor*> all() const {
    return {&out, &state_out, &dq, &dk, &dv, &dstate_in};
  }

  DeviceTensor out, state_out, dq, dk, dv, dstate_in;
};

inline LinearResults run_linear(Rig& rig, const LinearAttentionKernel& row,
                                const LinearProblem& p) {
  LinearResults r(p);
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

inline void expect_results(const LinearResults& r, const LinearTruth& truth, double limit) {
  expect_near(r.out, truth.out, limit, "out");
  expect_near(r.state_out, truth.state_out, limit, "state_out");
  expect_near(r.dq, truth.dq, limit, "dq");
  expect_near(r.dk, truth.dk, limit, "dk");
  expect_near(r.dv, truth.dv, limit, "dv");
  expect_near(r.dstate_in, truth.dstate_in, limit, "dstate_in");
}

}  // namespace longhaul::kernels::testing
