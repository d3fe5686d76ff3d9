// `longhaul bench gemm`: the three products of a linear layer, as share of the multiply-add peak.
//
//   nt   forward             y[T, out] = x[T, in] W[out, in]^T
//   nn   gradient of x       dx[T, in] = dy[T, out] W
//   tn   gradient of W       dW[out, in] += dy^T x, in the accumulator type
//
// Each is 2 x T x out x in FLOPs. Ends with the geometric mean and the least of the shares.
#include <algorithm>
#include <cmath>
#include <map>
#include <memory>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "kernels/gemm.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/kernel_benches.h"

namespace longhaul::launch {

namespace {

struct Options {
  KernelBenchOptions common;
  std::vector<std::string> ops = {"nt", "nn", "tn"};
  std::vector<int64_t> tokens = {2048, 8192};
  std::vector<std::string> weights = {"2048x512", "512x2048", "4096x4096", "32000x512"};
};

struct Weight {
  int64_t out = 0;
  int64_t in = 0;
};

Weight parse_weight(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, 'x');
  Weight weight;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &weight.out) ||
      !absl::SimpleAtoi(parts[1], &weight.in) || weight.out < 1 || weight.in < 1) {
    fail(ErrorCode::kConfig,
         absl::StrCat("--weights ", text, ": wanted is OUTxIN, for example 2048x512"));
  }
  return weight;
}

KernelCase make_case(const std::string& op, DType dtype, int64_t tokens, const Weight& weight,
                     Device device) {
  using kernels::Gemm;
  using kernels::Transpose;
  const auto operand = [&](int64_t rows, int64_t columns, uint64_t seed) {
    return std::make_shared<Tensor>(random_tensor(dtype, {rows, columns}, seed, device));
  };
  const auto result = [&](DType type, int64_t rows, int64_t columns) {
    return std::make_shared<Tensor>(type, Shape{rows, columns}, device);
  };
  KernelCase one{.description = {{"op", op},
                                 {"dtype", std::string(name(dtype))},
                                 {"tokens", tokens},
                                 {"out", weight.out},
                                 {"in", weight.in}},
                 .dtype = dtype,
                 .limit = Limit::kMultiplyAdds,
                 .work = 2.0 * static_cast<double>(tokens) * static_cast<double>(weight.out) *
                         static_cast<double>(weight.in),
                 .run = {}};
  if (op == "nt") {
    const auto x = operand(tokens, weight.in, 1), w = operand(weight.out, weight.in, 2),
               y = result(dtype, tokens, weight.out);
    one.run = [=](const Context& ctx) {
      kernels::gemm(ctx, {.transpose_b = Transpose::kYes, .a = *x, .b = *w, .c = *y});
    };
  } else if (op == "nn") {
    const auto dy = operand(tokens, weight.out, 1), w = operand(weight.out, weight.in, 2),
               dx = result(dtype, tokens, weight.in);
    one.run = [=](const Context& ctx) { kernels::gemm(ctx, {.a = *dy, .b = *w, .c = *dx}); };
  } else {
    const auto dy = operand(tokens, weight.out, 1), x = operand(tokens, weight.in, 2),
               dw = result(accumulator(dtype), weight.out, weight.in);
    one.run = [=](const Context& ctx) {
      kernels::gemm(ctx,
                    {.transpose_a = Transpose::kYes, .a = *dy, .b = *x, .c = *dw, .beta = 1.0});
    };
  }
  return one;
}

int run(const Options& options) {
  check_known("--op", options.ops, {"nt", "nn", "tn"});
  check_positive("--tokens", options.tokens);
  std::vector<Weight> weights;
  for (const std::string& text : options.weights) weights.push_back(parse_weight(text));

  KernelBench bench("gemm", options.common);
  for (const DType dtype : bench.dtypes()) {
    double log_sum = 0, least = 0;
    int64_t count = 0;
    for (const std::string& op : options.ops) {
      for (const int64_t tokens : options.tokens) {
        for (const Weight& weight : weights) {
          const double ratio =
              bench.add(make_case(op, dtype, tokens, weight, bench.device())).ratio();
          log_sum += std::log(ratio);
          least = count == 0 ? ratio : std::min(least, ratio);
          ++count;
        }
      }
    }
    bench.print_summary("geometric mean", dtype, std::exp(log_sum / static_cast<double>(count)));
    bench.print_summary("minimum", dtype, least);
  }
  return 0;
}

}  // namespace

Action add_gemm_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_list(app, "--op", options->ops,
           "nt (forward), nn (gradient of the input), tn (gradient of the weight)");
  add_list(app, "--tokens", options->tokens, "Rows of the input");
  add_list(app, "--weights", options->weights, "Shapes of the weight, OUTxIN");
  add_kernel_options(app, options->common);
  return [options] { return run(*options); };
}

}  // namespace longhaul::launch
