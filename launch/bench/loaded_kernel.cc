#include "launch/bench/loaded_kernel.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include "launch/bench/kernel_bench.h"

namespace longhaul::launch {

namespace {

using Clock = std::chrono::steady_clock;

// Rows of a square block of so many pairs.
int64_t rows_of_block(double pairs, bool causal) {
  return std::max<int64_t>(1, std::llround(std::sqrt(causal ? 2 * pairs : pairs)));
}

}  // namespace

struct LoadedKernel::Block {
  Block(const Context& outer, const parallel::CoreAttentionOptions& o, int64_t n, uint64_t seed)
      : pool(1),
        shared_pool(outer.device() == kCpu ? nullptr : outer.pool),
        stream(outer.stream),
        heads(o.heads),
        scale(o.scale),
        segment{.q_len = n,
                .k_len = n,
                .band_lo = -kBandOpen,
                .band_hi = o.mask.causal ? 0 : kBandOpen},
        q(random_tensor(o.dtype, {n, heads.q_heads, heads.head_dim}, seed, outer.device())),
        k(random_tensor(o.dtype, {n, heads.kv_heads, heads.head_dim}, seed + 1, outer.device())),
        v(random_tensor(o.dtype, {n, heads.kv_heads, heads.value_dim}, seed + 2, outer.device())),
        dout(random_tensor(o.dtype, {n, heads.q_heads, heads.value_dim}, seed + 3, outer.device())),
        out(accumulator(o.dtype), dout.shape(), outer.device()),
        lse(accumulator(o.dtype), {heads.q_heads, n}, outer.device()),
        delta(accumulator(o.dtype), {heads.q_heads, n}, outer.device()),
        dq(accumulator(o.dtype), q.shape(), outer.device()),
        dk(accumulator(o.dtype), k.shape(), outer.device()),
        dv(accumulator(o.dtype), v.shape(), outer.device()),
        scratch(Arena::measure("workspace", outer.device())) {
    run(SequencePass::kBoth);
    scratch = Arena("workspace", scratch.peak(), outer.device());
    run(SequencePass::kForward);
    kernels::attention_delta(context(), out, dout, delta);
    run(SequencePass::kBackward);
  }

  Context context() {
    return {.stream = stream,
            .pool = shared_pool == nullptr ? &pool : shared_pool,
            .scratch = &scratch};
  }

  void run(SequencePass pass) {
    const Context ctx = context();
    const kernels::AttentionOptions options{.scale = scale};
    if (pass != SequencePass::kBackward) {
      kernels::attention_init(ctx, out, lse);
      kernels::attention_forward(ctx, {.segments = {&segment, 1},
                                       .heads = {.group = heads.group()},
                                       .q = q,
                                       .k = k,
                                       .v = v,
                                       .options = options,
                                       .out_acc = out,
                                       .lse = lse});
    }
    if (pass == SequencePass::kForward) return;
    kernels::attention_backward(ctx, {.segments = {&segment, 1},
                                      .heads = {.group = heads.group()},
                                      .q = q,
                                      .k = k,
                                      .v = v,
                                      .options = options,
                                      .dout = dout,
                                      .lse = lse,
                                      .delta = delta,
                                      .dq_acc = dq,
                                      .dk_acc = dk,
                                      .dv_acc = dv});
  }

  double pairs() const { return static_cast<double>(area(segment) * heads.q_heads); }

  ThreadPool pool;  // one thread, a block's own
  ThreadPool* shared_pool;
  Stream stream;
  parallel::HeadShape heads;
  double scale;
  Segment segment;
  Tensor q, k, v, dout, out, lse, delta, dq, dk, dv;
  Arena scratch;
  double seconds = 0;
};

LoadedKernel::LoadedKernel(dist::Group& group, const Context& ctx,
                           const parallel::CoreAttentionOptions& options, int64_t pairs)
    : group_(group), ctx_(ctx) {
  const int threads = ctx.device() == kCpu ? ctx.pool->threads() : 1;
  const double share = static_cast<double>(pairs) / (threads * group.size()) /
                       static_cast<double>(options.heads.q_heads);
  const int64_t n = rows_of_block(share, options.mask.causal);
  for (int i = 0; i < threads; ++i) {
    blocks_.push_back(std::make_unique<Block>(ctx, options, n, static_cast<uint64_t>(4 * i)));
  }
}

LoadedKernel::~LoadedKernel() = default;

double LoadedKernel::time(SequencePass pass) {
  wait_until_idle(ctx_.stream);
  group_.barrier("limit");
  const auto timed = [&](int64_t index, int) {
    Block& block = *blocks_[static_cast<size_t>(index)];
    const auto begin = Clock::now();
    block.run(pass);
    wait_until_idle(block.stream);
    block.seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  };
  ctx_.pool->run(static_cast<int64_t>(blocks_.size()), timed);
  double rate = 0;
  for (const auto& block : blocks_) rate += block->pairs() / block->seconds;
  return group_.sum(rate, "limit");
}

}  // namespace longhaul::launch
