#include "model/softmax_mixer.h"

#include "kernels/attention.h"
#include "kernels/pointwise.h"
#include "kernels/rope.h"
#include "model/attention_options.h"
#include "model/linear.h"

namespace longhaul::model {

using A = Activation;

SoftmaxMixer::SoftmaxMixer(const ModelConfig& config, DType dtype,
                           const BlockParameters& parameters, int64_t layer)
    : config_(config), dtype_(dtype), layer_(layer) {
  const int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  wq_ = parameters.linear("self_attn.q_proj", q, config.width);
  wk_ = parameters.linear("self_attn.k_proj", kv, config.width);
  wv_ = parameters.linear("self_attn.v_proj", kv, config.width);
  wo_ = parameters.residual("self_attn.o_proj", q);
  if (config.attention.sinks) {
    sinks_ = parameters.constant("self_attn.sinks", config.heads, 0.0);
  }
}

void SoftmaxMixer::allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows,
                            StepContext& /*step*/, BlockActivations& a) const {
  const auto take = [&](A activation, DType dtype, const Shape& shape) {
    if (keeps(policy, activation) == kept) a[activation] = arena.allocate(dtype, shape);
  };
  const int64_t dim = config_.head_dim;
  take(A::kQ, dtype_, {rows, config_.heads, dim});
  take(A::kK, dtype_, {rows, config_.kv_heads, dim});
  take(A::kV, dtype_, {rows, config_.kv_heads, dim});
  take(A::kOut, dtype_, {rows, config_.heads, dim});
  take(A::kLse, accumulator(dtype_), {config_.heads, rows});
}

void SoftmaxMixer::before(const Context& ctx, const PositionTables& positions,
                          BlockActivations& a) const {
  linear_forward(ctx, a[A::kNormed1], wq_, all_heads(a[A::kQ]));
  linear_forward(ctx, a[A::kNormed1], wk_, all_heads(a[A::kK]));
  linear_forward(ctx, a[A::kNormed1], wv_, all_heads(a[A::kV]));
  if (config_.attention.alibi) return;
  kernels::rope(ctx, {.cos = positions.rope_cos, .sin = positions.rope_sin, .x = a[A::kQ]});
  kernels::rope(ctx, {.cos = positions.rope_cos, .sin = positions.rope_sin, .x = a[A::kK]});
}

std::optional<RandomKey> SoftmaxMixer::dropout_key(const StepContext& step) const {
  if (!step.dropout_key) return std::nullopt;
  return dropout_key_of_layer(*step.dropout_key, layer_);
}

void SoftmaxMixer::attend(StepContext& step, BlockActivations& a) const {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const DType acc = accumulator(dtype_);
  const TensorView& out = a[A::kOut];
  const TensorView out_acc = dtype_ == acc ? out : ctx.scratch->allocate(acc, out.shape());
  if (step.inference != nullptr && step.inference->decoding()) {
    attend_to_kept(step, a, out_acc);
  } else {
    attend_to_sample(step, a, out_acc);
  }
  if (dtype_ != acc) kernels::copy(ctx, out_acc, out);
}

void SoftmaxMixer::attend_to_sample(StepContext& step, const BlockActivations& a,
                                    TensorView out_acc) const {
  const Context& ctx = step.ctx;
  step.attention.announce(layer_, parallel::Direction::kForward);
  auto pending = step.attention.begin(ctx, step.communication,
                                      {.q = a[A::kQ],
                                       .k = a[A::kK],
                                       .v = a[A::kV],
                                       .out_acc = out_acc,
                                       .lse = a[A::kLse],
                                       .sink = sink(),
                                       .dropout_key = dropout_key(step)});
  step.attention.finish(ctx, std::move(pending));
  if (step.inference == nullptr) return;
  step.inference->softmax().keep(ctx, step.inference->softmax_index(layer_), a[A::kK], a[A::kV]);
}

void SoftmaxMixer::attend_to_kept(StepContext& step, const BlockActivations& a,
                                  TensorView out_acc) const {
  step.inference->softmax().attend(
      step.ctx, step.communication, step.inference->softmax_index(layer_),
      {.q = a[A::kQ], .k = a[A::kK], .v = a[A::kV], .out_acc = out_acc, .sink = sink()});
}

void SoftmaxMixer::after(const Context& ctx, BlockActivations& a, TensorView y) const {
  linear_forward(ctx, all_heads(a[A::kOut]), wo_, y);
}

MixerGradients SoftmaxMixer::gradients(Arena& arena, int64_t rows) const {
  const auto take = [&](int64_t heads) {
    return arena.allocate(dtype_, {rows, heads, config_.head_dim});
  };
  MixerGradients g;
  g.dout = take(config_.heads);
  g.dq = take(config_.heads);
  g.dk = take(config_.kv_heads);
  g.dv = take(config_.kv_heads);
  return g;
}

void SoftmaxMixer::backward_after(const Context& ctx, const BlockActivations& a, ConstTensorView dy,
                                  const MixerGradients& g) const {
  linear_backward(ctx, dy, all_heads(a[A::kOut]), wo_, all_heads(g.dout), Write::kOverwrite);
}

void SoftmaxMixer::backward_attend(StepContext& step, const BlockActivations& a,
                                   const MixerGradients& g) const {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const DType acc = accumulator(dtype_);
  const TensorView delta = ctx.scratch->allocate(acc, {config_.heads, g.dout.dim(0)});
  kernels::attention_delta(ctx, a[A::kOut], g.dout, delta);
  const auto in_accumulator = [&](const TensorView& x) {
    return dtype_ == acc ? x : ctx.scratch->allocate(acc, x.shape());
  };
  const TensorView dq_acc = in_accumulator(g.dq), dk_acc = in_accumulator(g.dk),
                   dv_acc = in_accumulator(g.dv);
  step.attention.announce(layer_, parallel::Direction::kBackward);
  step.attention.backward(ctx, step.communication,
                          {.q = a[A::kQ],
                           .k = a[A::kK],
                           .v = a[A::kV],
                           .dout = g.dout,
                           .lse = a[A::kLse],
                           .delta = delta,
                           .dq_acc = dq_acc,
                           .dk_acc = dk_acc,
                           .dv_acc = dv_acc,
                           .sink = sink(),
                           .dsink = sinks_ ? sinks_->grad_or(*ctx.scratch) : TensorView(),
                           .dropout_key = dropout_key(step)});
  if (dtype_ == acc) return;
  kernels::copy(ctx, dq_acc, g.dq);
  kernels::copy(ctx, dk_acc, g.dk);
  kernels::copy(ctx, dv_acc, g.dv);
}

void SoftmaxMixer::backward_before(const Context& ctx, const PositionTables& positions,
                                   const BlockActivations& a, const MixerGradients& g,
                                   TensorView dnormed) const {
  if (!config_.attention.alibi) {
    for (const TensorView& x : {g.dq, g.dk}) {
      kernels::rope(
          ctx, {.cos = positions.rope_cos, .sin = positions.rope_sin, .inverse = true, .x = x});
    }
  }
  linear_backward(ctx, all_heads(g.dq), a[A::kNormed1], wq_, dnormed, Write::kOverwrite);
  linear_backward(ctx, all_heads(g.dk), a[A::kNormed1], wk_, dnormed, Write::kAdd);
  linear_backward(ctx, all_heads(g.dv), a[A::kNormed1], wv_, dnormed, Write::kAdd);
}

}  // namespace longhaul::model
