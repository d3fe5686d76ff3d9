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
  if (config.attention.qkv_bias) {
    bq_ = parameters.constant("self_attn.q_proj.bias", q, 0.0);
    bk_ = parameters.constant("self_attn.k_proj.bias", kv, 0.0);
    bv_ = parameters.constant("self_attn.v_proj.bias", kv, 0.0);
  }
  if (config.attention.output_bias) {
    bo_ = parameters.constant("self_attn.o_proj.bias", config.width, 0.0);
  }
  if (config.attention.qk_norm) {
    const auto norm = [&](const char* name) {
      return Norm(config, NormKind::kRms, parameters.prefix() + name, config.head_dim,
                  parameters.store(), parameters.bucket());
    };
    q_norm_ = norm("self_attn.q_norm.weight");
    k_norm_ = norm("self_attn.k_norm.weight");
  }
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
  if (config_.attention.qk_norm) {
    take(A::kRawQ, dtype_, {rows, config_.heads, dim});
    take(A::kRawK, dtype_, {rows, config_.kv_heads, dim});
    take(A::kQRstd, accumulator(dtype_), {rows * config_.heads});
    take(A::kKRstd, accumulator(dtype_), {rows * config_.kv_heads});
  }
  take(A::kQ, dtype_, {rows, config_.heads, dim});
  take(A::kK, dtype_, {rows, config_.kv_heads, dim});
  take(A::kV, dtype_, {rows, config_.kv_heads, dim});
  take(A::kOut, dtype_, {rows, config_.heads, dim});
  take(A::kLse, accumulator(dtype_), {config_.heads, rows});
}

void SoftmaxMixer::project(const Context& ctx, const BlockActivations& a, const Projection& weight,
                           const std::optional<parallel::Parameter>& bias, TensorView x) const {
  linear_forward(ctx, a[A::kNormed1], weight, all_heads(x));
  if (bias) add_bias(ctx, *bias, all_heads(x));
}

void SoftmaxMixer::before(const Context& ctx, const PositionTables& positions,
                          BlockActivations& a) const {
  const bool norms = config_.attention.qk_norm;
  project(ctx, a, wq_, bq_, a[norms ? A::kRawQ : A::kQ]);
  project(ctx, a, wk_, bk_, a[norms ? A::kRawK : A::kK]);
  project(ctx, a, wv_, bv_, a[A::kV]);
  if (norms) {
    q_norm_.forward(ctx, each_head(a[A::kRawQ]), each_head(a[A::kQ]), a[A::kQRstd]);
    k_norm_.forward(ctx, each_head(a[A::kRawK]), each_head(a[A::kK]), a[A::kKRstd]);
  }
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
  if (bo_) add_bias(ctx, *bo_, y);
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
  if (bo_) bias_backward(ctx, dy, *bo_);
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

TensorView SoftmaxMixer::norm_backward(const Context& ctx, const Norm& norm, TensorView dx,
                                       ConstTensorView raw, ConstTensorView rstd) const {
  if (!config_.attention.qk_norm) return dx;
  const TensorView draw = ctx.scratch->allocate(dtype_, dx.shape());
  kernels::fill_zero(ctx, draw);
  norm.backward(ctx, each_head(dx), raw.reshape(each_head(dx).shape()), rstd, each_head(draw));
  return draw;
}

void SoftmaxMixer::project_backward(const Context& ctx, const BlockActivations& a,
                                    ConstTensorView dx, const Projection& weight,
                                    const std::optional<parallel::Parameter>& bias,
                                    TensorView dnormed, Write write) const {
  const ConstTensorView rows = dx.reshape({dx.dim(0), dx.dim(1) * dx.dim(2)});
  if (bias) bias_backward(ctx, rows, *bias);
  linear_backward(ctx, rows, a[A::kNormed1], weight, dnormed, write);
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
  {
    Arena::Scope scope(*ctx.scratch);
    project_backward(ctx, a, norm_backward(ctx, q_norm_, g.dq, a[A::kRawQ], a[A::kQRstd]), wq_, bq_,
                     dnormed, Write::kOverwrite);
  }
  {
    Arena::Scope scope(*ctx.scratch);
    project_backward(ctx, a, norm_backward(ctx, k_norm_, g.dk, a[A::kRawK], a[A::kKRstd]), wk_, bk_,
                     dnormed, Write::kAdd);
  }
  project_backward(ctx, a, g.dv, wv_, bv_, dnormed, Write::kAdd);
}

}  // namespace longhaul::model
