// `longhaul bench linear`: linear attention with decay on one rank, as share of the multiply-add
// peak, and whether tokens cost the same at any length.
//
//   FLOPs = (4 d^2 + 2 c d) x tokens x heads forward, (10 d^2 + 5 c d) x tokens x heads backward
//
// c is the kernels' block (kernels/linear_attention.h): what a kernel computes beyond these
// products does not count. The limit is the f32 peak for bf16, too, since only its loads and stores
// differ.
#include <cmath>
#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
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
  int64_t heads = 8;
};

// The operands of a case.
struct Problem {
  Problem(DType dtype, bool backward, int64_t n, int64_t heads, int64_t d, Device device)
      : runs{{.begin = 0, .length = n}},
        q(random_tensor(dtype, {n, heads, d}, 1, device)),
        k(random_tensor(dtype, {n, heads, d}, 2, device)),
        v(random_tensor(dtype, {n, heads, d}, 3, device)) {
    // Slopes of 2^(-8 (h + 1) / heads), as usual for lightning attention.
    for (int64_t h = 0; h < heads; ++h) {
      slopes.push_back(std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(heads)));
    }
    const DType acc = accumulator(dtype);
    if (!backward) {
      out = Tensor(acc, q.shape(), device);
      return;
    }
    dout = random_tensor(dtype, {n, heads, d}, 4, device);
    for (Tensor* sums : {&dq, &dk, &dv}) *sums = Tensor(acc, q.shape(), device);
  }

  kernels::LinearTokens tokens() const {
    return {.runs = runs, .document_begins = {}, .slopes = slopes};
  }
  void forward(const Context& ctx) const {
    kernels::linear_attention_forward(ctx,
                                      {.tokens = tokens(), .q = q, .k = k, .v = v, .out_acc = out});
  }
  void backward(const Context& ctx) const {
    kernels::linear_attention_backward(ctx, {.tokens = tokens(),
                                             .q = q,
                                             .k = k,
                                             .v = v,
                                             .dout = dout,
                                             .dq_acc = dq,
                                             .dk_acc = dk,
                                             .dv_acc = dv});
  }

  std::vector<kernels::LinearRun> runs;
  std::vector<double> slopes;
  Tensor q, k, v, dout, out, dq, dk, dv;
};

KernelCase make_case(const Options& options, const std::string& op, DType dtype, int64_t n,
                     int64_t d, Device device) {
  const bool forward = op == "forward";
  const auto problem = std::make_shared<Problem>(dtype, !forward, n, options.heads, d, device);
  const int64_t c = kernels::kLinearBlock;
  const int64_t flops = forward ? 4 * d * d + 2 * c * d : 10 * d * d + 5 * c * d;
  return {.description = {{"op", op},
                          {"dtype", std::string(name(dtype))},
                          {"d", d},
                          {"n", n},
                          {"heads", options.heads}},
          .dtype = accumulator(dtype),
          .limit = Limit::kMultiplyAdds,
          .work = static_cast<double>(flops * n * options.heads),
          .run = [problem, forward](const Context& ctx) {
            forward ? problem->forward(ctx) : problem->backward(ctx);
          }};
}

int run(const Options& options) {
  check_positive("--d", options.head_dims);
  check_positive("--n", options.lengths);
  check_positive("--heads", std::span(&options.heads, 1));
  check_known("--op", options.ops, {"forward", "backward"});
  KernelBench bench("linear", options.common);
  for (const DType dtype : bench.dtypes()) {
    for (const std::string& op : options.ops) {
      for (const int64_t d : options.head_dims) {
        std::optional<double> first_rate;
        for (const int64_t n : options.lengths) {
          const KernelCase one = make_case(options, op, dtype, n, d, bench.device());
          const Figure figure = bench.measure(one);
          if (!first_rate) first_rate = figure.rate;
          const auto head_tokens = static_cast<double>(n * options.heads);
          const Extra extras[] = {{"million_head_tokens_s", 1e-6 * head_tokens / figure.seconds},
                                  {"speed_to_first_n", figure.rate / *first_rate}};
          bench.print(one, figure, extras);
        }
      }
    }
  }
  return 0;
}

}  // namespace

Action add_linear_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_list(app, "--op", options->ops, "forward, backward");
  add_list(app, "--d", options->head_dims, "Sizes of a head, of keys and of values");
  add_list(app, "--n", options->lengths, "Tokens");
  app.add_option("--heads", options->heads, "Heads")->capture_default_str()->type_name("N");
  add_kernel_options(app, options->common);
  return [options] { return run(*options); };
}

}  // namespace longhaul::launch
