#include "launch/bench/sequence_timer.h"

#include "launch/bench/kernel_bench.h"

namespace longhaul::launch {

namespace {

constexpr const char* kWhat = "sequence bench";

}  // namespace

SequenceTimer::SequenceTimer(dist::Group& group, const Context& ctx, const SequenceCase& c)
    : group_(group),
      ctx_(ctx),
      attention_(group, c.layout, c.attention),
      scratch_(Arena::measure("workspace", ctx.device())),
      communication_(Arena::measure("communication", ctx.device())) {
  const parallel::HeadShape& h = c.attention.heads;
  const DType type = c.attention.dtype, sum = accumulator(type);
  const Device device = ctx.device();
  const int64_t rows = c.layout.rows(group.rank());
  const auto seed = [&](int index) { return static_cast<uint64_t>(4 * group.rank() + index); };
  q_ = random_tensor(type, {rows, h.q_heads, h.head_dim}, seed(0), device);
  k_ = random_tensor(type, {rows, h.kv_heads, h.head_dim}, seed(1), device);
  v_ = random_tensor(type, {rows, h.kv_heads, h.value_dim}, seed(2), device);
  dout_ = random_tensor(type, {rows, h.q_heads, h.value_dim}, seed(3), device);
  out_ = Tensor(sum, {rows, h.q_heads, h.value_dim}, device);
  lse_ = Tensor(sum, {h.q_heads, rows}, device);
  delta_ = Tensor(sum, {h.q_heads, rows}, device);
  dq_ = Tensor(sum, q_.shape(), device);
  dk_ = Tensor(sum, k_.shape(), device);
  dv_ = Tensor(sum, v_.shape(), device);

  attention_.prepare(c.documents);
  ctx_.scratch = &scratch_;
  run(ctx_, communication_, SequencePass::kBoth);
  scratch_ = Arena("workspace", scratch_.peak(), device);
  communication_ = Arena("communication", communication_.peak(), device);
  time(SequencePass::kForward);
  kernels::attention_delta(ctx_, out_, dout_, delta_);
  time(SequencePass::kBackward);

  const int64_t mine = attention_.forward_area();
  pairs_ = static_cast<int64_t>(group_.sum(static_cast<double>(mine), kWhat));
  const double mean = static_cast<double>(pairs_) / group_.size();
  if (pairs_ > 0) imbalance_ = static_cast<double>(group_.max(mine, kWhat)) / mean;
}

void SequenceTimer::run(const Context& ctx, Arena& communication, SequencePass pass) {
  if (pass != SequencePass::kBackward) {
    auto pending = attention_.begin(ctx, communication,
                                    {.q = q_, .k = k_, .v = v_, .out_acc = out_, .lse = lse_});
    attention_.finish(ctx, std::move(pending));
  }
  if (pass == SequencePass::kForward) return;
  attention_.backward(ctx, communication,
                      {.q = q_,
                       .k = k_,
                       .v = v_,
                       .dout = dout_,
                       .lse = lse_,
                       .delta = delta_,
                       .dq_acc = dq_,
                       .dk_acc = dk_,
                       .dv_acc = dv_});
}

GroupTiming SequenceTimer::time(SequencePass pass, dist::Group& together) {
  return time_together(together, ctx_, [&] { run(ctx_, communication_, pass); });
}

}  // namespace longhaul::launch
