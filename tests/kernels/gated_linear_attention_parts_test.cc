// Gated linear attention in parts, every row of every table: parts of a sequence, and parts of the
// work, as ranks will do them, make up the whole.
#include "kernels/gated_linear_attention.h"
#include "tests/kernels/gated_linear_attention_problem.h"

namespace longhaul::kernels::testing {
namespace {

// The same tokens in several calls, each continuing the one before.
TEST(GatedLinearAttention, PartsMakeTheWhole) {
  for_each_row(&Backend::gated_linear_attention, [](const GatedLinearAttentionKernel& row) {
    GatedCase whole = plain_gated_case(611, 16, 24);
    whole.documents = {300, 550};
    const GatedProblem p(row.dtype, whole);
    const GatedTruth truth = p.truth();
    Rig rig(2);
    const std::vector<int64_t> borders{0, 1, 250, 300, 420, 611};
    GatedResults r(p);
    std::vector<DeviceTensor> states;  // that enter the parts
    const DeviceTensor state(p.acc, whole.states()), gradient(p.acc, whole.states());
    const auto copy_to = [](const DeviceTensor& to, const DeviceTensor& from) {
      set(to, [&](int64_t n) { return values(from)[static_cast<size_t>(n)]; });
    };
    copy_to(state, p.state_in);
    for (size_t i = 0; i + 1 < borders.size(); ++i) {
      const LinearRun run{borders[i], borders[i + 1] - borders[i]};
      states.emplace_back(p.acc, whole.states());
      copy_to(states.back(), state);
      rig.run([&](const Context& ctx) {
        row.forward(ctx, {.tokens = p.tokens({&run, 1}),
                          .q = p.q,
                          .k = p.k,
                          .v = p.v,
                          .state_in = states.back(),
                          .out_acc = r.out,
                          .state_out = state});
      });
    }
    copy_to(r.state_out, state);
    copy_to(gradient, p.dstate_out);
    for (size_t i = borders.size() - 1; i-- > 0;) {
      const LinearRun run{borders[i], borders[i + 1] - borders[i]};
      rig.run([&](const Context& ctx) {
        row.backward(ctx, {.tokens = p.tokens({&run, 1}),
                           .q = p.q,
                           .k = p.k,
                           .v = p.v,
                           .dout = p.dout,
                           .state_in = states[i],
                           .dstate_out = gradient,  // and back: states may share their memory
                           .dq_acc = r.dq,
                           .dk_acc = r.dk,
                           .dv_acc = r.dv,
                           .dstate_in = gradient});
      });
      rig.run([&](const Context& ctx) {
        row.gate_gradient(ctx, {.tokens = p.tokens({&run, 1}),
                                .q = p.q,
                                .k = p.k,
                                .dq = r.dq,
                                .dk = r.dk,
                                .state_in = states[i],
                                .dstate_in = gradient,
                                .dlog_gate = r.dlog_gate});
      });
    }
    copy_to(r.dstate_in, gradient);
    expect_gated(p, r, truth);
  });
}

// What ranks will do: maps, an exchange, and meanwhile all that does not need the states.
TEST(GatedLinearAttention, MapsAndAdditionsMakeTheWhole) {
  for_each_row(&Backend::gated_linear_attention, [](const GatedLinearAttentionKernel& row) {
    for (const std::vector<int64_t>& documents :
         std::vector<std::vector<int64_t>>{{900}, {}, {500, 709}}) {
      GatedCase whole = plain_gated_case(1400, 16, 24);
      whole.documents = documents;
      whole.gates = [](int64_t n) { return 0.05 * mixed_gate(n); };  // states live to be seen
      const GatedProblem p(row.dtype, whole);
      const GatedTruth truth = p.truth();
      const std::vector<LinearRun> of_ranks{
          {0, 500}, {500, 0}, {500, 200}, {700, 400}, {1100, 300}};
      const GatedTokens tokens = p.tokens(of_ranks);
      const auto runs = static_cast<int64_t>(of_ranks.size());
      const Shape states{runs, 2, 16, 24};
      for (const int threads : numbers_of_threads({1, 3})) {
        SCOPED_TRACE(threads);
        Rig rig(threads);
        GatedResults r(p);
        const DeviceTensor right = poisoned(p.acc, states), left = poisoned(p.acc, states);
        const DeviceTensor right_decay = poisoned(p.acc, {runs, 2, 16}),
                           left_decay = poisoned(p.acc, {runs, 2, 16});
        rig.run([&](const Context& ctx) { row.maps(ctx, {tokens, p.k, p.v, right, right_decay}); });
        rig.run([&](const Context& ctx) {
          row.backward_maps(ctx, {tokens, p.q, p.dout, left, left_decay});
        });
        EXPECT_TRUE(same_bits(right_decay, left_decay));
        // state_out = e^log_decay state_in + sums, run after run.
        const int64_t per_run = 2 * 16 * 24;
        const std::vector<double> decay = values(right_decay);
        const auto apply = [&](std::vector<double>& state, const std::vector<double>& sums,
                               int64_t of_run) {
          for (int64_t n = 0; n < per_run; ++n) {
            const double log_decay = decay[static_cast<size_t>(of_run * 2 * 16 + n / 24)];
            state[static_cast<size_t>(n)] = std::exp(log_decay) * state[static_cast<size_t>(n)] +
                                            sums[static_cast<size_t>(of_run * per_run + n)];
          }
        };
        const DeviceTensor entering(p.acc, states), gradients(p.acc, states),
            leaving(p.acc, states);
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
          put(leaving, runs - 1 - i, gradient);
        }
        rig.run([&](const Context& ctx) {
          row.forward(ctx, {.tokens = tokens, .q = p.q, .k = p.k, .v = p.v, .out_acc = r.out});
        });
        rig.run([&](const Context& ctx) { row.add_out(ctx, {tokens, p.q, entering, r.out}); });
        rig.run([&](const Context& ctx) {
          row.backward(ctx, {.tokens = tokens,
                             .q = p.q,
                             .k = p.k,
                             .v = p.v,
                             .dout = p.dout,
                             .dq_acc = r.dq,
                             .dk_acc = r.dk,
                             .dv_acc = r.dv});
        });
        rig.run([&](const Context& ctx) { row.add_dq(ctx, {tokens, p.dout, entering, r.dq}); });
        rig.run([&](const Context& ctx) {
          row.add_dk_dv(ctx, {tokens, p.k, p.v, gradients, r.dk, r.dv});
        });
        rig.run([&](const Context& ctx) {
          row.gate_gradient(ctx, {.tokens = tokens,
                                  .q = p.q,
                                  .k = p.k,
                                  .dq = r.dq,
                                  .dk = r.dk,
                                  .state_in = entering,
                                  .dstate_in = leaving,
                                  .dlog_gate = r.dlog_gate});
        });
        put(r.state_out, 0, state);
        put(r.dstate_in, 0, gradient);
        expect_gated(p, r, truth);
      }
    }
  });
}

}  // namespace
}  // namespace longhaul::kernels::testing
