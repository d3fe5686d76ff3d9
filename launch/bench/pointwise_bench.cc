// `longhaul bench pointwise`: what a step does besides attention and matrix products, as share of
// the copy bandwidth; and the output layer with its loss, whose products count as FLOPs.
#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/core/random.h"
#include "kernels/core/transfer.h"
#include "kernels/gemm.h"
#include "kernels/linear_cross_entropy.h"
#include "launch/bench/kernel_benches.h"
#include "launch/bench/pointwise_cases.h"

namespace longhaul::launch {

namespace {

constexpr const char* kLoss = "linear_cross_entropy";

struct Options {
  KernelBenchOptions common;
  PointwiseShape shape;
  int64_t loss_tokens = 2048;
  int64_t loss_width = 512;
  std::vector<std::string> ops;
};

std::vector<std::string> known_operations() {
  std::vector<std::string> names;
  for (const PointwiseOperation& operation : pointwise_operations()) {
    names.emplace_back(operation.name);
  }
  names.emplace_back(kLoss);
  return names;
}

void check(const Options& options) {
  const PointwiseShape& shape = options.shape;
  check_positive("--n", std::span(&shape.tokens, 1));
  check_positive("--width", std::span(&shape.width, 1));
  check_positive("--d", std::span(&shape.head_dim, 1));
  check_positive("--vocabulary", std::span(&shape.vocabulary, 1));
  check_positive("--loss-n", std::span(&options.loss_tokens, 1));
  check_positive("--loss-width", std::span(&options.loss_width, 1));
  if (shape.width % shape.head_dim != 0 || shape.head_dim % 2 != 0) {
    fail(ErrorCode::kConfig,
         absl::StrCat("--d ", shape.head_dim, ": even, and a divisor of --width ", shape.width,
                      " is wanted"));
  }
  check_known("--op", options.ops, known_operations());
}

// The loss with its gradients, in turns with its three products alone: what is above 1 is the
// softmax's, and that of its tiles.
void add_loss(KernelBench& bench, const Options& options, DType dtype) {
  using kernels::Transpose;
  const DType acc = accumulator(dtype);
  const int64_t tokens = options.loss_tokens, width = options.loss_width,
                vocabulary = options.shape.vocabulary;
  const Device device = bench.device();
  const Tensor x = random_tensor(dtype, {tokens, width}, 1, device);
  const Tensor weight = random_tensor(dtype, {vocabulary, width}, 2, device);
  const Tensor labels(DType::kI32, {tokens}, device), row_loss(acc, {tokens}, device);
  const Tensor dx(dtype, {tokens, width}, device), dweight(acc, {vocabulary, width}, device);
  const Tensor logits(dtype, {tokens, vocabulary}, device);
  const Tensor host(DType::kI32, {tokens});
  uint64_t i = 0;
  for (int32_t& label : host.span<int32_t>()) {
    const uint64_t bits = random_u64({.seed = 3, .stream = 0}, i++);
    label = static_cast<int32_t>(bits % static_cast<uint64_t>(vocabulary));
  }
  upload(bench.stream(), host, labels);
  wait_until_idle(bench.stream());
  const KernelCase loss{.description = {{"op", kLoss},
                                        {"dtype", std::string(name(dtype))},
                                        {"n", tokens},
                                        {"width", width},
                                        {"vocabulary", vocabulary}},
                        .dtype = dtype,
                        .limit = Limit::kMultiplyAdds,
                        .work = 6.0 * static_cast<double>(tokens) * static_cast<double>(width) *
                                static_cast<double>(vocabulary),
                        .run = [&](const Context& ctx) {
                          kernels::linear_cross_entropy(ctx, {.x = x,
                                                              .weight = weight,
                                                              .labels = labels,
                                                              .row_loss = row_loss,
                                                              .with_gradients = true,
                                                              .dx = dx,
                                                              .dweight = dweight});
                        }};
  KernelCase products = loss;
  products.run = [&](const Context& ctx) {
    kernels::gemm(ctx, {.transpose_b = Transpose::kYes, .a = x, .b = weight, .c = logits});
    kernels::gemm(ctx, {.a = logits, .b = weight, .c = dx});
    kernels::gemm(ctx,
                  {.transpose_a = Transpose::kYes, .a = logits, .b = x, .c = dweight, .beta = 1.0});
  };
  const KernelCase cases[] = {loss, products};
  const std::vector<Figure> figures = bench.measure(cases);
  const Extra extra{"time_to_products", figures[0].seconds / figures[1].seconds};
  bench.print(loss, figures[0], std::span(&extra, 1));
}

int run(const Options& options) {
  check(options);
  KernelBench bench("pointwise", options.common);
  const auto wanted = [&](std::string_view op) {
    return options.ops.empty() || std::ranges::find(options.ops, op) != options.ops.end();
  };
  for (const DType dtype : bench.dtypes()) {
    for (const PointwiseOperation& operation : pointwise_operations()) {
      if (!wanted(operation.name)) continue;
      if (operation.accumulator_only && dtype != accumulator(dtype)) continue;
      PointwiseShape shape = options.shape;
      shape.stream = bench.stream();
      KernelCase one = operation.make(dtype, shape);
      one.dtype = dtype;
      one.description = {{"op", std::string(operation.name)},
                         {"dtype", std::string(name(dtype))},
                         {"n", options.shape.tokens},
                         {"width", options.shape.width}};
      bench.add(one);
    }
    if (wanted(kLoss)) add_loss(bench, options, dtype);
  }
  return 0;
}

}  // namespace

Action add_pointwise_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  const auto number = [&](const std::string& name, int64_t& value, const std::string& help) {
    app.add_option(name, value, help)->capture_default_str()->type_name("N");
  };
  std::string names;
  for (const std::string& name : known_operations()) names.append(", ").append(name);
  add_list(app, "--op", options->ops, "Some of" + names.substr(1) + "; by default all");
  number("--n", options->shape.tokens, "Tokens: rows of each operand");
  number("--width", options->shape.width, "Elements of a row");
  number("--d", options->shape.head_dim, "Size of a head, for rope and attention's operations");
  number("--vocabulary", options->shape.vocabulary,
         "Rows of the embedding table and of the output");
  number("--loss-n", options->loss_tokens, "Tokens for linear_cross_entropy");
  number("--loss-width", options->loss_width, "Elements of a row for linear_cross_entropy");
  add_kernel_options(app, options->common);
  return [options] { return run(*options); };
}

}  // namespace longhaul::launch
