#include "model/llama_block.h"

#include "kernels/gated_unit.h"
#include "kernels/pointwise.h"
#include "model/linear.h"
#include "model/linear_mixer.h"
#include "model/softmax_mixer.h"

namespace longhaul::model {

namespace {

using A = Activation;

std::unique_ptr<const Mixer> make_mixer(const ModelConfig& config, DType dtype,
                                        const BlockParameters& parameters, int64_t layer) {
  if (config.is_linear(layer)) {
    return std::make_unique<LinearMixer>(config, dtype, parameters, layer);
  }
  return std::make_unique<SoftmaxMixer>(config, dtype, parameters, layer);
}

}  // namespace

LlamaBlock::LlamaBlock(const ModelConfig& config, DType dtype, parallel::ParameterStore& store,
                       int64_t layer, int bucket)
    : config_(config), dtype_(dtype), layer_(layer) {
  const BlockParameters parameters(config, store, layer, bucket);
  const auto norm = [&](const char* name) {
    return Norm(config, config.norm, parameters.prefix() + name, config.width, store, bucket);
  };
  norm1_ = norm("input_layernorm.weight");
  mixer_ = make_mixer(config, dtype, parameters, layer);
  norm2_ = norm("post_attention_layernorm.weight");
  wgate_ = parameters.linear("mlp.gate_proj", config.mlp_width, config.width);
  wup_ = parameters.linear("mlp.up_proj", config.mlp_width, config.width);
  wdown_ = parameters.residual("mlp.down_proj", config.mlp_width);
}

void LlamaBlock::allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows,
                          StepContext& step, BlockActivations& activations) const {
  const DType acc = accumulator(dtype_);
  const auto take = [&](A activation, DType dtype, const Shape& shape) {
    if (keeps(policy, activation) == kept) activations[activation] = arena.allocate(dtype, shape);
  };
  // kInput is allocated by whoever writes it: the block below.
  take(A::kRstd1, acc, {rows});
  take(A::kNormed1, dtype_, {rows, config_.width});
  mixer_->allocate(arena, policy, kept, rows, step, activations);
  take(A::kMiddle, dtype_, {rows, config_.width});
  take(A::kRstd2, acc, {rows});
  take(A::kNormed2, dtype_, {rows, config_.width});
  take(A::kGate, dtype_, {rows, config_.mlp_width});
  take(A::kUp, dtype_, {rows, config_.mlp_width});
  take(A::kGated, dtype_, {rows, config_.mlp_width});
}

void LlamaBlock::forward(StepContext& step, const PositionTables& positions, BlockActivations& a,
                         TensorView output) const {
  before(step.ctx, positions, a);
  mixer_->attend(step, a);
  middle(step.ctx, a);
  linear_forward(step.ctx, a[A::kGated], wdown_, output);
  add_residual(step.ctx, a[A::kMiddle], a[A::kNormed2], output);
  if (step.probe != nullptr) {
    step.probe->look(step.ctx, a[A::kOut], layer_, "attention output");
    step.probe->look(step.ctx, output, layer_, "block output");
  }
}

void LlamaBlock::add_scaled(const Context& ctx, ConstTensorView x, TensorView y) const {
  Arena::Scope scope(*ctx.scratch);
  const TensorView scaled = ctx.scratch->allocate(dtype_, y.shape());
  kernels::activation_forward(ctx, {.activation = kernels::Activation::kIdentity,
                                    .scale = config_.residual_scale,
                                    .x = x,
                                    .y = scaled});
  kernels::add(ctx, scaled, y, y);
}

void LlamaBlock::add_residual(const Context& ctx, ConstTensorView x, ConstTensorView normed,
                              TensorView y) const {
  config_.residual_scale > 0 ? add_scaled(ctx, normed, y) : kernels::add(ctx, x, y, y);
}

void LlamaBlock::before(const Context& ctx, const PositionTables& positions,
                        BlockActivations& a) const {
  norm1_.forward(ctx, a[A::kInput], a[A::kNormed1], a[A::kRstd1]);
  mixer_->before(ctx, positions, a);
}

void LlamaBlock::middle(const Context& ctx, BlockActivations& a) const {
  mixer_->after(ctx, a, a[A::kMiddle]);
  add_residual(ctx, a[A::kInput], a[A::kNormed1], a[A::kMiddle]);
  norm2_.forward(ctx, a[A::kMiddle], a[A::kNormed2], a[A::kRstd2]);
  linear_forward(ctx, a[A::kNormed2], wgate_, a[A::kGate]);
  linear_forward(ctx, a[A::kNormed2], wup_, a[A::kUp]);
  kernels::gated_unit_forward(
      ctx,
      {.activation = config_.mlp_gate, .gate = a[A::kGate], .up = a[A::kUp], .y = a[A::kGated]});
}

void LlamaBlock::backward(StepContext& step, const PositionTables& positions,
                          ActivationPolicy policy, BlockActivations& a, TensorView dx) const {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const int64_t rows = dx.dim(0);
  allocate(*ctx.scratch, policy, /*kept=*/false, rows, step, a);
  if (!keeps(policy, A::kQ)) before(ctx, positions, a);
  if (!keeps(policy, A::kGated)) middle(ctx, a);

  const MixerGradients g = mixer_->gradients(*ctx.scratch, rows);
  backward_after(ctx, a, dx, g);
  mixer_->backward_attend(step, a, g);
  backward_before(ctx, positions, a, g, dx);
}

void LlamaBlock::backward_norm(const Context& ctx, const Norm& norm, ConstTensorView x,
                               ConstTensorView rstd, TensorView dnormed, TensorView dx) const {
  if (config_.residual_scale > 0) {
    add_scaled(ctx, dx, dnormed);
    kernels::fill_zero(ctx, dx);
  }
  // Without a scale, dx already holds the residual branch's share.
  norm.backward(ctx, dnormed, x, rstd, dx);
}

void LlamaBlock::backward_after(const Context& ctx, BlockActivations& a, TensorView dx,
                                const MixerGradients& g) const {
  Arena::Scope scope(*ctx.scratch);
  const int64_t rows = dx.dim(0);
  const auto take = [&](int64_t width) { return ctx.scratch->allocate(dtype_, {rows, width}); };
  const TensorView dgated = take(config_.mlp_width);
  linear_backward(ctx, dx, a[A::kGated], wdown_, dgated, Write::kOverwrite);
  const TensorView dgate = take(config_.mlp_width), dup = take(config_.mlp_width);
  kernels::gated_unit_backward(ctx, {.activation = config_.mlp_gate,
                                     .dy = dgated,
                                     .gate = a[A::kGate],
                                     .up = a[A::kUp],
                                     .dgate = dgate,
                                     .dup = dup});
  const TensorView dnormed = take(config_.width);
  linear_backward(ctx, dgate, a[A::kNormed2], wgate_, dnormed, Write::kOverwrite);
  linear_backward(ctx, dup, a[A::kNormed2], wup_, dnormed, Write::kAdd);
  backward_norm(ctx, norm2_, a[A::kMiddle], a[A::kRstd2], dnormed, dx);
  mixer_->backward_after(ctx, a, dx, g);
}

void LlamaBlock::backward_before(const Context& ctx, const PositionTables& positions,
                                 BlockActivations& a, const MixerGradients& g,
                                 TensorView dx) const {
  Arena::Scope scope(*ctx.scratch);
  const TensorView dnormed = ctx.scratch->allocate(dtype_, {dx.dim(0), config_.width});
  mixer_->backward_before(ctx, positions, a, g, dnormed);
  backward_norm(ctx, norm1_, a[A::kInput], a[A::kRstd1], dnormed, dx);
}

}  // namespace longhaul::model
