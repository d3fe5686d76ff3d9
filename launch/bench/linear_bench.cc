// `longhaul bench linear`: linear attention on one rank, as share of the multiply-add peak, and
// whether tokens cost the same at any length. FLOPs per token and head, by --kind:
//
//                 forward            backward
//   lightning     4 d^2 + 2 c d      10 d^2 + 5 c d       a decay per head
//   gla           4 d^2 + 2 c d      10 d^2 + 5 c d       a gate per head and key dimension
//   delta         6 d^2 + 4 c d      16 d^2 + 11 c d      the gated delta rule
//
// c is the kernels' block (kernels/linear_attention.h); the products are named in the headers of
// the kernels. What a kernel computes beyond these products does not count: the gradients of GLA's
// gates, for one, which are part of backward here. The limit is the f32 peak for bf16, too, since
// only its loads and stores differ.
#include <algorithm>
#include <cmath>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/core/random.h"
#include "kernels/core/transfer.h"
#include "kernels/delta_rule.h"
#include "kernels/gated_linear_attention.h"
#include "kernels/linear_attention.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/kernel_benches.h"

namespace longhaul::launch {

namespace {

struct Options {
  KernelBenchOptions common;
  std::vector<int64_t> head_dims = {64, 128};
  std::vector<int64_t> lengths = {4096, 16384, 65536};
  std::vector<std::string> ops = {"forward", "backward"};
  std::vector<std::string> kinds = {"lightning"};
  int64_t heads = 8;
};

// The operands of a case, of any kind.
struct Problem {
  Problem(DType dtype, bool backward, int64_t n, int64_t heads, int64_t d, Device device)
      : runs{{.begin = 0, .length = n}},
        q(random_tensor(dtype, {n, heads, d}, 1, device)),
        k(random_tensor(dtype, {n, heads, d}, 2, device)),
        v(random_tensor(dtype, {n, heads, d}, 3, device)) {
    const DType acc = accumulator(dtype);
    if (!backward) {
      out = Tensor(acc, q.shape(), device);
      return;
    }
    dout = random_tensor(dtype, {n, heads, d}, 4, device);
    for (Tensor* sums : {&dq, &dk, &dv}) *sums = Tensor(acc, q.shape(), device);
  }
  virtual ~Problem() = default;
  virtual void forward(const Context& ctx) const = 0;
  virtual void backward(const Context& ctx) const = 0;

  std::vector<kernels::LinearRun> runs;
  Tensor q, k, v, dout, out, dq, dk, dv;
};

struct Lightning : Problem {
  Lightning(DType dtype, bool backward, int64_t n, int64_t heads, int64_t d, Device device)
      : Problem(dtype, backward, n, heads, d, device) {
    // Slopes of 2^(-8 (h + 1) / heads), as usual for lightning attention.
    for (int64_t h = 0; h < heads; ++h) {
      slopes.push_back(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)));
    }
  }
  kernels::LinearTokens tokens() const {
    return {.runs = runs, .document_begins = {}, .slopes = slopes};
  }
  void forward(const Context& ctx) const override {
    kernels::linear_attention_forward(ctx,
                                      {.tokens = tokens(), .q = q, .k = k, .v = v, .out_acc = out});
  }
  void backward(const Context& ctx) const override {
    kernels::linear_attention_backward(ctx, {.tokens = tokens(),
                                             .q = q,
                                             .k = k,
                                             .v = v,
                                             .dout = dout,
                                             .dq_acc = dq,
                                             .dk_acc = dk,
                                             .dv_acc = dv});
  }

  std::vector<double> slopes;
};

// scale log sigmoid(x) of normal x; with a scale of 1/16 as in GLA.
Tensor random_gates(DType acc, const Shape& shape, double scale, uint64_t seed, Device device) {
  const Tensor host(acc, shape);
  visit_float(acc, [&]<class T>() {
    for (int64_t i = 0; i < shape.elements(); ++i) {
      const double x = random_normal({.seed = seed, .stream = 1}, static_cast<uint64_t>(i));
      host.view().data<T>()[i] = static_cast<T>(-scale * std::log1p(std::exp(-x)));
    }
  });
  Tensor gates(acc, shape, device);
  const OwnedStream stream(device);
  upload(stream.get(), host, gates);
  wait_until_idle(stream.get());
  return gates;
}

struct Gated : Problem {
  Gated(DType dtype, bool backward, int64_t n, int64_t heads, int64_t d, Device device)
      : Problem(dtype, backward, n, heads, d, device),
        log_gate(random_gates(accumulator(dtype), {n, heads, d}, 1.0 / 16, 5, device)) {
    if (backward) dlog_gate = Tensor(accumulator(dtype), q.shape(), device);
  }
  kernels::GatedTokens tokens() const {
    return {.runs = runs, .document_begins = {}, .log_gate = log_gate};
  }
  void forward(const Context& ctx) const override {
    kernels::gated_linear_attention_forward(
        ctx, {.tokens = tokens(), .q = q, .k = k, .v = v, .out_acc = out});
  }
  void backward(const Context& ctx) const override {
    kernels::gated_linear_attention_backward(ctx, {.tokens = tokens(),
                                                   .q = q,
                                                   .k = k,
                                                   .v = v,
                                                   .dout = dout,
                                                   .dq_acc = dq,
                                                   .dk_acc = dk,
                                                   .dv_acc = dv});
    kernels::gated_linear_attention_gate_gradient(
        ctx, {.tokens = tokens(), .q = q, .k = k, .dq = dq, .dk = dk, .dlog_gate = dlog_gate});
  }

  Tensor log_gate, dlog_gate;
};

struct Delta : Problem {
  Delta(DType dtype, bool backward, int64_t n, int64_t heads, int64_t d, Device device)
      : Problem(dtype, backward, n, heads, d, device),
        log_gate(random_gates(accumulator(dtype), {n, heads}, 1.0 / 16, 5, device)),
        // Small: states stay bounded, as keys here are about sqrt(d) long.
        beta(Tensor(accumulator(dtype), {n, heads}, device)) {
    const OwnedStream stream(device);
    const Tensor host(accumulator(dtype), {n, heads});
    visit_float(accumulator(dtype), [&]<class T>() {
      std::fill_n(host.view().data<T>(), n * heads, static_cast<T>(0.5 / static_cast<double>(d)));
    });
    upload(stream.get(), host, beta);
    wait_until_idle(stream.get());
    if (!backward) return;
    for (Tensor* gates : {&dlog_gate, &dbeta}) {
      *gates = Tensor(accumulator(dtype), {n, heads}, device);
    }
  }
  kernels::DeltaTokens tokens() const {
    return {.runs = runs, .document_begins = {}, .log_gate = log_gate, .beta = beta};
  }
  void forward(const Context& ctx) const override {
    kernels::delta_rule_forward(ctx, {.tokens = tokens(), .q = q, .k = k, .v = v, .out_acc = out});
  }
  void backward(const Context& ctx) const override {
    kernels::delta_rule_backward(ctx, {.tokens = tokens(),
                                       .q = q,
                                       .k = k,
                                       .v = v,
                                       .dout = dout,
                                       .dq_acc = dq,
                                       .dk_acc = dk,
                                       .dv_acc = dv,
                                       .dlog_gate = dlog_gate,
                                       .dbeta = dbeta});
  }

  Tensor log_gate, beta, dlog_gate, dbeta;
};

template <class Kind>
std::shared_ptr<Problem> make_problem(DType dtype, bool backward, int64_t n, int64_t heads,
                                      int64_t d, Device device) {
  return std::make_shared<Kind>(dtype, backward, n, heads, d, device);
}

// FLOPs per token and head: of d^2 and of c d.
struct Flops {
  int64_t squares, blocks;
};
struct Kind {
  std::string_view name;
  Flops forward, backward;
  std::shared_ptr<Problem> (*make)(DType, bool backward, int64_t n, int64_t heads, int64_t d,
                                   Device);
};
constexpr Kind kKinds[] = {{"lightning", {4, 2}, {10, 5}, make_problem<Lightning>},
                           {"gla", {4, 2}, {10, 5}, make_problem<Gated>},
                           {"delta", {6, 4}, {16, 11}, make_problem<Delta>}};

KernelCase make_case(const Options& options, const Kind& kind, const std::string& op, DType dtype,
                     int64_t n, int64_t d, Device device) {
  const bool forward = op == "forward";
  const auto problem = kind.make(dtype, !forward, n, options.heads, d, device);
  const Flops& flops = forward ? kind.forward : kind.backward;
  const int64_t per_token = flops.squares * d * d + flops.blocks * kernels::kLinearBlock * d;
  return {.description = {{"op", op},
                          {"dtype", std::string(name(dtype))},
                          {"kind", std::string(kind.name)},
                          {"d", d},
                          {"n", n},
                          {"heads", options.heads}},
          .dtype = accumulator(dtype),
          .limit = Limit::kMultiplyAdds,
          .work = static_cast<double>(per_token * n * options.heads),
          .run = [problem, forward](const Context& ctx) {
            forward ? problem->forward(ctx) : problem->backward(ctx);
          }};
}

// All lengths of one case, against the first one.
void run_lengths(const Options& options, KernelBench& bench, const Kind& kind,
                 const std::string& op, DType dtype, int64_t d) {
  std::optional<double> first_rate;
  for (const int64_t n : options.lengths) {
    const KernelCase one = make_case(options, kind, op, dtype, n, d, bench.device());
    const Figure figure = bench.measure(one);
    if (!first_rate) first_rate = figure.rate;
    const auto head_tokens = static_cast<double>(n * options.heads);
    const Extra extras[] = {{"million_head_tokens_s", 1e-6 * head_tokens / figure.seconds},
                            {"speed_to_first_n", figure.rate / *first_rate}};
    bench.print(one, figure, extras);
  }
}

int run(const Options& options) {
  check_positive("--d", options.head_dims);
  check_positive("--n", options.lengths);
  check_positive("--heads", std::span(&options.heads, 1));
  check_known("--op", options.ops, {"forward", "backward"});
  check_known("--kind", options.kinds, {"lightning", "gla", "delta"});
  KernelBench bench("linear", options.common);
  for (const Kind& kind : kKinds) {
    if (std::find(options.kinds.begin(), options.kinds.end(), kind.name) == options.kinds.end()) {
      continue;
    }
    for (const DType dtype : bench.dtypes()) {
      for (const std::string& op : options.ops) {
        for (const int64_t d : options.head_dims) run_lengths(options, bench, kind, op, dtype, d);
      }
    }
  }
  return 0;
}

}  // namespace

Action add_linear_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_list(app, "--kind", options->kinds, "lightning, gla, delta");
  add_list(app, "--op", options->ops, "forward, backward");
  add_list(app, "--d", options->head_dims, "Sizes of a head, of keys and of values");
  add_list(app, "--n", options->lengths, "Tokens");
  app.add_option("--heads", options->heads, "Heads")->capture_default_str()->type_name("N");
  add_kernel_options(app, options->common);
  return [options] { return run(*options); };
}

}  // namespace longhaul::launch
