// Linear attention in parts, every row of every table: parts of a sequence, and parts of the work,
// as ranks will do them, make up the whole.
#include "kernels/linear_attention.h"
#include "tests/kernels/linear_attention_problem.h"

namespace longhaul::kernels::testing {
namespace {

// The same tokens in several calls, each continuing the one before, or in several runs whose states
// are handed on by their maps.
TEST(LinearAttention, PartsMakeTheWhole) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    LinearCase whole = plain_case(611, 16, 24);
    whole.documents = {300, 550};
    const LinearProblem p(row.dtype, whole);
    const LinearTruth truth = p.truth();
    const double limit = row.dtype == DType::kF64 ? 1e-12 : linear_tolerance(row.dtype);
    Rig rig(2);
    const std::vector<int64_t> borders{0, 1, 250, 300, 420, 611};
    LinearResults r(p);
    DeviceTensor state(p.acc, whole.states());
    std::vector<DeviceTensor> states;  // that enter the parts
    set(state, [&](int64_t n) { return values(p.state_in)[static_cast<size_t>(n)]; });
    const auto part_of_case = [&](size_t i, LinearCase& c) {
      c = whole;
      c.runs = {{borders[i], borders[i + 1] - borders[i]}};
    };
    for (size_t i = 0; i + 1 < borders.size(); ++i) {
      LinearCase c;
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
      LinearCase c;
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
    LinearCase whole = plain_case(1400, 16, 24);
    whole.documents = {900};
    const LinearProblem p(row.dtype, whole);
    const LinearTruth truth = p.truth();
    const double limit = row.dtype == DType::kF64 ? 1e-12 : linear_tolerance(row.dtype);
    LinearCase c = whole;
    c.runs = {{0, 500}, {500, 0}, {500, 200}, {700, 400}, {1100, 300}};
    const auto runs = static_cast<int64_t>(c.runs.size());
    for (const int threads : numbers_of_threads({1, 3})) {
      SCOPED_TRACE(threads);
      Rig rig(threads);
      LinearResults r(p);
      const DeviceTensor right = poisoned(p.acc, c.states()), left = poisoned(p.acc, c.states());
      const DeviceTensor right_decay = poisoned(p.acc, {runs, 2}),
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
      const DeviceTensor entering(p.acc, c.states()), gradients(p.acc, c.states());
      const auto put = [&](const DeviceTensor& to, int64_t of_run,
                           const std::vector<double>& state) {
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
      DeviceTensor last(p.acc, whole.states());
      put(last, 0, state);
      expect_near(last, truth.state_out, limit, "state after the last run");
      put(last, 0, gradient);
      expect_near(last, truth.dstate_in, limit, "gradient before the first run");
    }
  });
}

// Head after head, each a slice of all operands, into memory that held something else.
TEST(LinearAttention, HeadSlicesMakeTheWhole) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    if (!row.head_slices || !row.overwrites) return;
    LinearCase whole = plain_case(611, 16, 24);
    whole.runs = {{0, 333}, {333, 278}};
    whole.documents = {300, 333, 550};
    const LinearProblem p(row.dtype, whole);
    const double limit = row.dtype == DType::kF64 ? 1e-12 : linear_tolerance(row.dtype);
    for (const int threads : {1, 3}) {
      SCOPED_TRACE(threads);
      Rig rig(threads);
      LinearResults r(p);
      for (const DeviceTensor* x : {&r.dq, &r.dk, &r.dv}) set(*x, [](int64_t) { return 3.0; });
      const DeviceTensor sums = poisoned(p.acc, whole.states()), all(p.acc, whole.states()),
                         decay(p.acc, {2, 1}), all_decay(p.acc, {2, 2});
      for (int64_t h = 0; h < whole.shape.heads; ++h) {
        LinearTokens tokens = whole.tokens();
        tokens.slopes = tokens.slopes.subspan(static_cast<size_t>(h), 1);
        const auto head = [h](const auto& x) { return x.view().slice(1, h, 1); };
        rig.run([&](const Context& ctx) {
          row.forward(ctx, {.tokens = tokens,
                            .q = head(p.q),
                            .k = head(p.k),
                            .v = head(p.v),
                            .state_in = head(p.state_in),
                            .out_acc = head(r.out),
                            .state_out = head(r.state_out)});
          row.maps(ctx, {tokens, head(p.k), head(p.v), head(sums), decay});
        });
        rig.run([&](const Context& ctx) {
          row.backward(ctx, {.tokens = tokens,
                             .q = head(p.q),
                             .k = head(p.k),
                             .v = head(p.v),
                             .dout = head(p.dout),
                             .state_in = head(p.state_in),
                             .dstate_out = head(p.dstate_out),
                             .dq_acc = head(r.dq),
                             .dk_acc = head(r.dk),
                             .dv_acc = head(r.dv),
                             .dstate_in = head(r.dstate_in),
                             .overwrite = true});
        });
      }
      expect_results(r, p.truth(), limit);
      rig.run([&](const Context& ctx) {
        row.maps(ctx, {whole.tokens(), p.k, p.v, all, all_decay});
      });
      expect_near(sums, values(all), limit, "sums");
    }
  });
}

// Bidirectional attention without decay, from maps and additions: a run per document.
TEST(LinearAttention, BidirectionalWithoutDecay) {
  for_each_row(&Backend::linear_attention, [](const LinearAttentionKernel& row) {
    const LinearShape shape{.tokens = 210, .heads = 2, .head_dim = 9, .value_dim = 14};
    const LinearCase c{.shape = shape, .slopes = {0, 0}, .runs = {{0, 130}, {130, 80}}};
    const LinearProblem p(row.dtype, c);
    Rig rig(2);
    const DeviceTensor s(p.acc, c.states()), g(p.acc, c.states()), log_decay(p.acc, {2, 2});
    const LinearResults r(p);
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
    expect_near(r.out, out, linear_tolerance(row.dtype), "out");
    expect_near(r.dq, dq, linear_tolerance(row.dtype), "dq");
    expect_near(r.dk, dk, linear_tolerance(row.dtype), "dk");
    expect_near(r.dv, dv, linear_tolerance(row.dtype), "dv");
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
