#include "model/llama_block.h"

#include <cmath>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/attention.h"
#include "kernels/gated_unit.h"
#include "kernels/pointwise.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "model/attention_options.h"
#include "model/linear.h"

namespace longhaul::model {

namespace {

using A = Activation;
using parallel::Initializer;
using parallel::Parameter;

// Small initialisation (Nguyen & Salazar 2019): 0.02 at width 1,000, more for narrow models, which
// would otherwise take long to leave the origin. Projections into the residual stream are smaller
// by sqrt(2 layers), as in GPT-2.
double standard_deviation(const ModelConfig& config) {
  return std::sqrt(2.0 / (5.0 * static_cast<double>(config.width)));
}

// [T, H, D] -> [T, H*D]
TensorView flat(const TensorView& x) { return x.reshape({x.dim(0), x.dim(1) * x.dim(2)}); }

}  // namespace

LlamaBlock::LlamaBlock(const ModelConfig& config, DType dtype, parallel::ParameterStore& store,
                       int64_t layer, int bucket)
    : config_(config), dtype_(dtype), layer_(layer) {
  const std::string prefix = absl::StrCat("model.layers.", layer, ".");
  const auto norm = [&](const char* name) {
    return store.declare({.name = prefix + name,
                          .shape = {config.width},
                          .initializer = {.constant = 1.0},
                          .weight_decay = false,
                          .bucket = bucket});
  };
  const auto linear = [&](const char* name, int64_t out, int64_t in, double deviation) {
    return store.declare({.name = prefix + name,
                          .shape = {out, in},
                          .initializer = {.standard_deviation = deviation},
                          .bucket = bucket});
  };
  const double inner = standard_deviation(config);
  const double residual = inner / std::sqrt(2.0 * static_cast<double>(config.layers));
  const int64_t q = config.heads * config.head_dim, kv = config.kv_heads * config.head_dim;
  norm1_ = norm("input_layernorm.weight");
  wq_ = linear("self_attn.q_proj.weight", q, config.width, inner);
  wk_ = linear("self_attn.k_proj.weight", kv, config.width, inner);
  wv_ = linear("self_attn.v_proj.weight", kv, config.width, inner);
  wo_ = linear("self_attn.o_proj.weight", config.width, q, residual);
  if (config.attention.sinks) {
    sinks_ = store.declare({.name = prefix + "self_attn.sinks",
                            .shape = {config.heads},
                            .initializer = {.constant = 0.0},
                            .weight_decay = false,
                            .bucket = bucket});
  }
  norm2_ = norm("post_attention_layernorm.weight");
  wgate_ = linear("mlp.gate_proj.weight", config.mlp_width, config.width, inner);
  wup_ = linear("mlp.up_proj.weight", config.mlp_width, config.width, inner);
  wdown_ = linear("mlp.down_proj.weight", config.width, config.mlp_width, residual);
}

void LlamaBlock::allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows,
                          BlockActivations& activations) const {
  const DType acc = accumulator(dtype_);
  const int64_t dim = config_.head_dim;
  const auto take = [&](A activation, DType dtype, const Shape& shape) {
    if (keeps(policy, activation) == kept) activations[activation] = arena.allocate(dtype, shape);
  };
  // kInput is allocated by whoever writes it: the block below.
  take(A::kRstd1, acc, {rows});
  take(A::kNormed1, dtype_, {rows, config_.width});
  take(A::kQ, dtype_, {rows, config_.heads, dim});
  take(A::kK, dtype_, {rows, config_.kv_heads, dim});
  take(A::kV, dtype_, {rows, config_.kv_heads, dim});
  take(A::kOut, dtype_, {rows, config_.heads, dim});
  take(A::kLse, acc, {config_.heads, rows});
  take(A::kMiddle, dtype_, {rows, config_.width});
  take(A::kRstd2, acc, {rows});
  take(A::kNormed2, dtype_, {rows, config_.width});
  take(A::kGate, dtype_, {rows, config_.mlp_width});
  take(A::kUp, dtype_, {rows, config_.mlp_width});
  take(A::kGated, dtype_, {rows, config_.mlp_width});
}

void LlamaBlock::forward(StepContext& step, const RopeAngles& rope, BlockActivations& a,
                         TensorView output) const {
  before(step.ctx, rope, a);
  attend(step, a);
  middle(step.ctx, a);
  linear_forward(step.ctx, a[A::kGated], wdown_, output);
  kernels::add(step.ctx, a[A::kMiddle], output, output);
  if (step.probe != nullptr) {
    step.probe->look(step.ctx, a[A::kOut], layer_, "attention output");
    step.probe->look(step.ctx, output, layer_, "block output");
  }
}

void LlamaBlock::before(const Context& ctx, const RopeAngles& rope, BlockActivations& a) const {
  kernels::rms_norm_forward(ctx, {.x = a[A::kInput],
                                  .weight = norm1_.use(),
                                  .eps = config_.norm_eps,
                                  .y = a[A::kNormed1],
                                  .rstd = a[A::kRstd1]});
  linear_forward(ctx, a[A::kNormed1], wq_, flat(a[A::kQ]));
  linear_forward(ctx, a[A::kNormed1], wk_, flat(a[A::kK]));
  linear_forward(ctx, a[A::kNormed1], wv_, flat(a[A::kV]));
  if (config_.attention.alibi) return;
  kernels::rope(ctx, {.cos = rope.cos, .sin = rope.sin, .x = a[A::kQ]});
  kernels::rope(ctx, {.cos = rope.cos, .sin = rope.sin, .x = a[A::kK]});
}

std::optional<RandomKey> LlamaBlock::dropout_key(const StepContext& step) const {
  if (!step.dropout_key) return std::nullopt;
  return dropout_key_of_layer(*step.dropout_key, layer_);
}

void LlamaBlock::attend(StepContext& step, BlockActivations& a) const {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const DType acc = accumulator(dtype_);
  const TensorView& out = a[A::kOut];
  const TensorView out_acc = dtype_ == acc ? out : ctx.scratch->allocate(acc, out.shape());
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
  if (dtype_ != acc) kernels::copy(ctx, out_acc, out);
}

void LlamaBlock::middle(const Context& ctx, BlockActivations& a) const {
  linear_forward(ctx, flat(a[A::kOut]), wo_, a[A::kMiddle]);
  kernels::add(ctx, a[A::kInput], a[A::kMiddle], a[A::kMiddle]);
  kernels::rms_norm_forward(ctx, {.x = a[A::kMiddle],
                                  .weight = norm2_.use(),
                                  .eps = config_.norm_eps,
                                  .y = a[A::kNormed2],
                                  .rstd = a[A::kRstd2]});
  linear_forward(ctx, a[A::kNormed2], wgate_, a[A::kGate]);
  linear_forward(ctx, a[A::kNormed2], wup_, a[A::kUp]);
  kernels::gated_unit_forward(ctx, {.gate = a[A::kGate], .up = a[A::kUp], .y = a[A::kGated]});
}

void LlamaBlock::backward(StepContext& step, const RopeAngles& rope, ActivationPolicy policy,
                          BlockActivations& a, TensorView dx) const {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const int64_t rows = dx.dim(0), dim = config_.head_dim;
  allocate(*ctx.scratch, policy, /*kept=*/false, rows, a);
  if (!keeps(policy, A::kQ)) before(ctx, rope, a);
  if (!keeps(policy, A::kGated)) middle(ctx, a);

  const TensorView dout = ctx.scratch->allocate(dtype_, {rows, config_.heads, dim});
  backward_after(ctx, a, dx, dout);
  const TensorView dq = ctx.scratch->allocate(dtype_, {rows, config_.heads, dim});
  const TensorView dk = ctx.scratch->allocate(dtype_, {rows, config_.kv_heads, dim});
  const TensorView dv = ctx.scratch->allocate(dtype_, {rows, config_.kv_heads, dim});
  backward_attend(step, a, dout, dq, dk, dv);
  backward_before(ctx, rope, a, dq, dk, dv, dx);
}

void LlamaBlock::backward_after(const Context& ctx, BlockActivations& a, TensorView dx,
                                TensorView dout) const {
  Arena::Scope scope(*ctx.scratch);
  const int64_t rows = dx.dim(0);
  const auto take = [&](int64_t width) { return ctx.scratch->allocate(dtype_, {rows, width}); };
  const TensorView dgated = take(config_.mlp_width);
  linear_backward(ctx, dx, a[A::kGated], wdown_, dgated, Write::kOverwrite);
  const TensorView dgate = take(config_.mlp_width), dup = take(config_.mlp_width);
  kernels::gated_unit_backward(
      ctx, {.dy = dgated, .gate = a[A::kGate], .up = a[A::kUp], .dgate = dgate, .dup = dup});
  const TensorView dnormed = take(config_.width);
  linear_backward(ctx, dgate, a[A::kNormed2], wgate_, dnormed, Write::kOverwrite);
  linear_backward(ctx, dup, a[A::kNormed2], wup_, dnormed, Write::kAdd);
  // dx already holds the residual branch's share.
  kernels::rms_norm_backward(ctx, {.dy = dnormed,
                                   .x = a[A::kMiddle],
                                   .weight = norm2_.use(),
                                   .rstd = a[A::kRstd2],
                                   .dx = dx,
                                   .dweight = norm2_.grad()});
  linear_backward(ctx, dx, flat(a[A::kOut]), wo_, flat(dout), Write::kOverwrite);
}

void LlamaBlock::backward_attend(StepContext& step, BlockActivations& a, TensorView dout,
                                 TensorView dq, TensorView dk, TensorView dv) const {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const DType acc = accumulator(dtype_);
  const TensorView delta = ctx.scratch->allocate(acc, {config_.heads, dout.dim(0)});
  kernels::attention_delta(ctx, a[A::kOut], dout, delta);
  const auto in_accumulator = [&](const TensorView& x) {
    return dtype_ == acc ? x : ctx.scratch->allocate(acc, x.shape());
  };
  const TensorView dq_acc = in_accumulator(dq), dk_acc = in_accumulator(dk),
                   dv_acc = in_accumulator(dv);
  step.attention.announce(layer_, parallel::Direction::kBackward);
  step.attention.backward(ctx, step.communication,
                          {.q = a[A::kQ],
                           .k = a[A::kK],
                           .v = a[A::kV],
                           .dout = dout,
                           .lse = a[A::kLse],
                           .delta = delta,
                           .dq_acc = dq_acc,
                           .dk_acc = dk_acc,
                           .dv_acc = dv_acc,
                           .sink = sink(),
                           .dsink = sinks_ ? sinks_->grad() : TensorView(),
                           .dropout_key = dropout_key(step)});
  if (dtype_ == acc) return;
  kernels::copy(ctx, dq_acc, dq);
  kernels::copy(ctx, dk_acc, dk);
  kernels::copy(ctx, dv_acc, dv);
}

void LlamaBlock::backward_before(const Context& ctx, const RopeAngles& rope, BlockActivations& a,
                                 TensorView dq, TensorView dk, TensorView dv, TensorView dx) const {
  Arena::Scope scope(*ctx.scratch);
  if (!config_.attention.alibi) {
    kernels::rope(ctx, {.cos = rope.cos, .sin = rope.sin, .inverse = true, .x = dq});
    kernels::rope(ctx, {.cos = rope.cos, .sin = rope.sin, .inverse = true, .x = dk});
  }
  const TensorView dnormed = ctx.scratch->allocate(dtype_, {dx.dim(0), config_.width});
  linear_backward(ctx, flat(dq), a[A::kNormed1], wq_, dnormed, Write::kOverwrite);
  linear_backward(ctx, flat(dk), a[A::kNormed1], wk_, dnormed, Write::kAdd);
  linear_backward(ctx, flat(dv), a[A::kNormed1], wv_, dnormed, Write::kAdd);
  kernels::rms_norm_backward(ctx, {.dy = dnormed,
                                   .x = a[A::kInput],
                                   .weight = norm1_.use(),
                                   .rstd = a[A::kRstd1],
                                   .dx = dx,
                                   .dweight = norm1_.grad()});
}

}  // namespace longhaul::model
