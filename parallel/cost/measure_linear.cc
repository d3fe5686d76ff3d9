#include "parallel/cost/measure_linear.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "dist/null/null.h"
#include "kernels/core/random.h"
#include "kernels/core/transfer.h"

namespace longhaul::parallel {

namespace {

using Clock = std::chrono::steady_clock;

// The best of some tries, after one to warm up.
double best_seconds(const Context& ctx, const std::function<void()>& work) {
  constexpr int kTries = 4;
  double best = 0;
  for (int i = 0; i < kTries; ++i) {
    wait_until_idle(ctx.stream);
    const auto begin = Clock::now();
    work();
    wait_until_idle(ctx.stream);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (i > 0) best = i == 1 ? seconds : std::min(best, seconds);
  }
  return best;
}

// Forward and backward of all heads on one rank, whose sample is in one run.
class LinearWork {
 public:
  LinearWork(const Context& ctx, const LinearAttentionOptions& options, int64_t rows)
      : ctx_(ctx),
        options_(options),
        group_(dist::null_group(0, 1)),
        layout_(TokenLayout::contiguous(rows, 1)),
        attention_(*group_, layout_, options_),
        slopes_(static_cast<size_t>(options.heads), 1.0 / 64) {
    const DType type = options.dtype, sum = accumulator(type);
    const Shape keys{rows, options.heads, options.head_dim};
    const Shape values{rows, options.heads, options.value_dim};
    for (Tensor* x : {&q_, &k_}) *x = uniform(type, keys, -0.125, 0.125);
    for (Tensor* x : {&v_, &dout_}) *x = uniform(type, values, -0.5, 0.5);
    out_ = uniform(sum, values, 0, 0);
    dv_ = uniform(sum, values, 0, 0);
    dq_ = uniform(sum, keys, 0, 0);
    dk_ = uniform(sum, keys, 0, 0);
    states_ =
        uniform(sum, {attention_.runs(), options.heads, options.head_dim, options.value_dim}, 0, 0);
    const Shape gates = options.kind == LinearKind::kGated ? keys : Shape{rows, options.heads};
    if (options.kind != LinearKind::kDecay) {
      log_gate_ = uniform(sum, gates, -0.1, 0);
      dlog_gate_ = uniform(sum, gates, 0, 0);
    }
    if (options.kind == LinearKind::kDeltaRule) {
      beta_ = uniform(sum, gates, 0, 1);
      dbeta_ = uniform(sum, gates, 0, 0);
    }
    Arena scratch = Arena::measure("measuring linear attention", ctx.device());
    Arena communication = Arena::measure("measuring linear attention", ctx.device());
    forward(scratch, communication);
    backward(scratch, communication);
    scratch_ = Arena("measuring linear attention", scratch.peak(), ctx.device());
    communication_ = Arena("measuring linear attention", communication.peak(), ctx.device());
    attention_.prepare(Documents::whole(rows), layout_);
  }

  double seconds(Direction direction) {
    return best_seconds(ctx_, [&] {
      direction == Direction::kForward ? forward(scratch_, communication_)
                                       : backward(scratch_, communication_);
    });
  }

 private:
  Tensor uniform(DType dtype, const Shape& shape, double low, double high) const {
    Tensor there(dtype, shape, ctx_.device());
    const Tensor here(dtype, shape);
    visit_float(dtype, [&]<class T>() {
      uint64_t index = 0;
      for (T& value : here.span<T>()) {
        const double random = random_uniform({.seed = 1, .stream = 3}, index++ % 4096);
        value = static_cast<T>(static_cast<float>(low + (high - low) * random));
      }
    });
    upload(ctx_.stream, here, there);
    wait_until_idle(ctx_.stream);
    return there;
  }

  void forward(Arena& scratch, Arena& communication) {
    Context ctx = ctx_;
    ctx.scratch = &scratch;
    auto pending = attention_.begin(ctx, communication,
                                    {.q = q_,
                                     .k = k_,
                                     .v = v_,
                                     .slopes = slopes_,
                                     .log_gate = log_gate_,
                                     .beta = beta_,
                                     .out_acc = out_,
                                     .states = states_});
    attention_.finish(ctx, std::move(pending));
  }
  void backward(Arena& scratch, Arena& communication) {
    Context ctx = ctx_;
    ctx.scratch = &scratch;
    attention_.backward(ctx, communication,
                        {.q = q_,
                         .k = k_,
                         .v = v_,
                         .dout = dout_,
                         .slopes = slopes_,
                         .log_gate = log_gate_,
                         .beta = beta_,
                         .states = states_,
                         .dq_acc = dq_,
                         .dk_acc = dk_,
                         .dv_acc = dv_,
                         .dlog_gate = dlog_gate_,
                         .dbeta = dbeta_});
  }

  const Context& ctx_;
  LinearAttentionOptions options_;
  std::unique_ptr<dist::Group> group_;
  TokenLayout layout_;
  LinearAttention attention_;
  std::vector<double> slopes_;
  Tensor q_, k_, v_, dout_, out_, dq_, dk_, dv_, states_;
  Tensor log_gate_, beta_, dlog_gate_, dbeta_;  // without a shape: the kind has none
  Arena scratch_{"nothing", 0}, communication_{"nothing", 0};
};

}  // namespace

HeadShape scanned_heads(const LinearAttentionOptions& options) {
  HeadShape heads{.q_heads = options.heads,
                  .kv_heads = options.heads,
                  .head_dim = options.head_dim,
                  .value_dim = options.value_dim};
  if (options.kind == LinearKind::kGated) heads.state_decay = kernels::StateDecay::kDiagonal;
  if (options.kind == LinearKind::kDeltaRule) heads.state_decay = kernels::StateDecay::kDense;
  return heads;
}

LinearProfile measure_linear(const Context& ctx, const LinearAttentionOptions& options,
                             int64_t rows) {
  const int64_t most = ctx.device() == kCpu ? 512 : 8192;
  const int64_t measured = std::clamp<int64_t>(rows, 1, most);
  LinearAttentionOptions alone = options;
  alone.method = "all_gather";
  alone.most_runs = 0;
  LinearWork work(ctx, alone, measured);
  const auto tokens = static_cast<double>(measured * options.heads);
  return {.dtype = options.dtype,
          .state_decay = scanned_heads(options).state_decay,
          .head_dim = options.head_dim,
          .value_dim = options.value_dim,
          .forward = work.seconds(Direction::kForward) / tokens,
          .backward = work.seconds(Direction::kBackward) / tokens};
}

}  // namespace longhaul::parallel
