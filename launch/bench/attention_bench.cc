// `longhaul bench attention`: forward and backward on one rank, as share of the multiply-add peak.
//
//   FLOPs = 4 d x pairs x heads forward, 10 d x pairs x heads backward
//
// A pair is a query and a key that see each other, counted exactly from the segments: what a kernel
// computes beyond them does not count. Backward has five products (scores again, dP, dV, dK, dQ).
// Initialisation, delta and merge are operations of their own (bench pointwise).
#include <algorithm>
#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/attention.h"
#include "launch/bench/kernel_bench.h"
#include "launch/bench/kernel_benches.h"
#include "launch/bench/packed_documents.h"
#include "parallel/layout/segments.h"

namespace longhaul::launch {

namespace {

struct Options {
  KernelBenchOptions common;
  std::vector<int64_t> head_dims = {64, 128};
  std::vector<int64_t> lengths;
  std::vector<std::string> masks;
  std::vector<std::string> ops = {"forward", "backward"};
  int64_t heads = 0;     // 0: fewer the longer
  int64_t kv_heads = 0;  // 0: as many as heads
  int64_t window = 1024;
  int64_t mean_document = 2048;
};

// Work a case stays within seconds.
int64_t usual_heads(int64_t tokens) { return tokens <= 2048 ? 8 : tokens <= 8192 ? 4 : 2; }

std::vector<Segment> make_segments(const Options& options, const std::string& mask, int64_t n) {
  const parallel::RunList rows = {{.global_begin = 0, .length = n, .stride = 1}};
  const parallel::Documents documents =
      mask == "packed" ? packed_documents(n, options.mean_document) : parallel::Documents::whole(n);
  return parallel::cut_segments(
      rows, rows, documents,
      {.causal = mask != "full", .window = mask == "window" ? options.window : 0});
}

// The operands of a case, which its functions share.
struct Problem {
  Problem(DType type, std::vector<Segment> cut, int64_t n, int64_t heads, int64_t kv_heads,
          int64_t d, Device device)
      : dtype(type),
        segments(std::move(cut)),
        group(heads / kv_heads),
        q(random_tensor(dtype, {n, heads, d}, 1, device)),
        k(random_tensor(dtype, {n, kv_heads, d}, 2, device)),
        v(random_tensor(dtype, {n, kv_heads, d}, 3, device)),
        dout(random_tensor(dtype, {n, heads, d}, 4, device)),
        out(accumulator(dtype), {n, heads, d}, device),
        lse(accumulator(dtype), {heads, n}, device),
        delta(accumulator(dtype), {heads, n}, device),
        dq(accumulator(dtype), {n, heads, d}, device),
        dk(accumulator(dtype), {n, kv_heads, d}, device),
        dv(accumulator(dtype), {n, kv_heads, d}, device) {}

  kernels::AttentionOptions options() const {
    return {.scale = 1 / std::sqrt(static_cast<double>(q.shape()[2]))};
  }
  void init(const Context& ctx) const { kernels::attention_init(ctx, out, lse); }
  void forward(const Context& ctx) const {
    kernels::attention_forward(ctx, {.segments = segments,
                                     .heads = {.group = group},
                                     .q = q,
                                     .k = k,
                                     .v = v,
                                     .options = options(),
                                     .out_acc = out,
                                     .lse = lse});
  }
  void backward(const Context& ctx) const {
    kernels::attention_backward(ctx, {.segments = segments,
                                      .heads = {.group = group},
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .options = options(),
                                      .dout = dout,
                                      .lse = lse,
                                      .delta = delta,
                                      .dq_acc = dq,
                                      .dk_acc = dk,
                                      .dv_acc = dv});
  }
  // What backward needs of forward.
  void before_backward(const Context& ctx) const {
    init(ctx);
    forward(ctx);
    kernels::attention_delta(ctx, out, dout, delta);
  }
  int64_t pairs() const {
    int64_t sum = 0;
    for (const Segment& segment : segments) sum += area(segment);
    return sum * q.shape()[1];
  }

  DType dtype;
  std::vector<Segment> segments;
  int64_t group;
  Tensor q, k, v, dout, out, lse, delta, dq, dk, dv;
};

KernelCase make_case(KernelBench& bench, const Options& options, const std::string& op, DType dtype,
                     const std::string& mask, int64_t n, int64_t d, int64_t heads) {
  const int64_t kv_heads = options.kv_heads > 0 ? options.kv_heads : heads;
  const auto problem = std::make_shared<Problem>(dtype, make_segments(options, mask, n), n, heads,
                                                 kv_heads, d, bench.device());
  const bool forward = op == "forward";
  const auto flops_per_pair = static_cast<double>((forward ? 4 : 10) * d);
  KernelCase result{.description = {{"op", op},
                                    {"dtype", std::string(name(dtype))},
                                    {"d", d},
                                    {"n", n},
                                    {"mask", mask},
                                    {"heads", heads},
                                    {"kv_heads", kv_heads}},
                    .dtype = dtype,
                    .limit = Limit::kMultiplyAdds,
                    .work = flops_per_pair * static_cast<double>(problem->pairs()),
                    .run = {}};
  if (forward && bench.device() != kCpu) {
    // A call is short, so many are timed together: each merges what it finds once more.
    bench.set_up([&](const Context& ctx) { problem->init(ctx); });
    result.run = [problem](const Context& ctx) { problem->forward(ctx); };
  } else if (forward) {
    result.prepare = [problem](const Context& ctx) { problem->init(ctx); };
    result.run = [problem](const Context& ctx) { problem->forward(ctx); };
  } else {
    bench.set_up([&](const Context& ctx) { problem->before_backward(ctx); });
    result.run = [problem](const Context& ctx) { problem->backward(ctx); };
  }
  return result;
}

// The mask's speed beside that of one causal block, in turns: for a window the same block, and the
// time against the window's share of its area; for documents a block of as much work.
void add_beside_causal(KernelBench& bench, const Options& options, const KernelCase& masked,
                       const std::string& op, DType dtype, const std::string& mask, int64_t n,
                       int64_t d, int64_t heads) {
  const int64_t flops_per_pair = (op == "forward" ? 4 : 10) * d * heads;
  const double pairs = masked.work / static_cast<double>(flops_per_pair);
  const int64_t causal_n =
      mask == "packed" ? std::max<int64_t>(1, std::llround(std::sqrt(2 * pairs))) : n;
  const KernelCase cases[] = {masked,
                              make_case(bench, options, op, dtype, "causal", causal_n, d, heads)};
  const std::vector<Figure> figures = bench.measure(cases);
  const Extra extra = mask == "packed"
                          ? Extra{"speed_to_one_block", figures[0].rate / figures[1].rate}
                          : Extra{"time_to_share_of_causal", figures[1].rate / figures[0].rate};
  bench.print(masked, figures[0], std::span(&extra, 1));
}

void check(const Options& options) {
  check_positive("--d", options.head_dims);
  check_positive("--n", options.lengths);
  check_positive("--window", std::span(&options.window, 1));
  check_positive("--mean-document", std::span(&options.mean_document, 1));
  check_known("--mask", options.masks, {"causal", "full", "window", "packed"});
  check_known("--op", options.ops, {"forward", "backward"});
  if (options.heads < 0 || options.kv_heads < 0) {
    const bool query = options.heads < 0;
    fail(ErrorCode::kConfig,
         absl::StrCat(query ? "--heads " : "--kv-heads ", query ? options.heads : options.kv_heads,
                      ": 1 or more, or 0 for the default"));
  }
}

int run(const Options& options) {
  check(options);
  KernelBench bench("attention", options.common);
  // Without a choice: the causal mask at all lengths, and what is cut from it at the longest.
  const bool usual = options.lengths.empty() && options.masks.empty();
  const std::vector<int64_t> lengths =
      options.lengths.empty() ? std::vector<int64_t>{1024, 4096, 16384} : options.lengths;
  const auto masks_at = [&](int64_t n) -> std::vector<std::string> {
    if (!options.masks.empty()) return options.masks;
    if (usual && n == lengths.back()) return {"causal", "window", "packed"};
    return {"causal"};
  };
  for (const DType dtype : bench.dtypes()) {
    for (const std::string& op : options.ops) {
      for (const int64_t d : options.head_dims) {
        for (const int64_t n : lengths) {
          const int64_t heads = options.heads > 0 ? options.heads : usual_heads(n);
          if (options.kv_heads > 0 && heads % options.kv_heads != 0) {
            fail(ErrorCode::kConfig,
                 absl::StrCat("--kv-heads ", options.kv_heads, " does not divide the ", heads,
                              " query heads of n = ", n, "; set --heads, too"));
          }
          for (const std::string& mask : masks_at(n)) {
            const KernelCase one = make_case(bench, options, op, dtype, mask, n, d, heads);
            if (mask == "window" || mask == "packed") {
              add_beside_causal(bench, options, one, op, dtype, mask, n, d, heads);
            } else {
              bench.add(one);
            }
          }
        }
      }
    }
  }
  return 0;
}

}  // namespace

Action add_attention_bench(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_list(app, "--op", options->ops, "forward, backward");
  add_list(app, "--d", options->head_dims, "Sizes of a head");
  add_list(app, "--n", options->lengths, "Tokens, by default 1024,4096,16384");
  add_list(
      app, "--mask", options->masks,
      "causal, full, window (measured beside causal: its time against its share of the work) or "
      "packed (documents; measured beside one causal block of as much work); by default causal "
      "and, if --n is not given, window and packed at the longest");
  app.add_option("--heads", options->heads,
                 "Query heads; 0: 8 up to 2048 tokens, 4 up to 8192, then 2")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--kv-heads", options->kv_heads, "Key and value heads; 0: as many as query heads")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--window", options->window, "Keys that a query sees under the window mask")
      ->capture_default_str()
      ->type_name("N");
  app.add_option("--mean-document", options->mean_document,
                 "Mean length of packed documents, whose lengths are log-normal")
      ->capture_default_str()
      ->type_name("N");
  add_kernel_options(app, options->common);
  return [options] { return run(*options); };
}

}  // namespace longhaul::launch
