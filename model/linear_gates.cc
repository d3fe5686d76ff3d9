#include "model/linear_gates.h"

#include <cmath>

#include "kernels/activation.h"
#include "kernels/decay_gate.h"
#include "model/linear.h"

namespace longhaul::model {

namespace {

using A = Activation;

constexpr int64_t kRank = 16;            // of gla's gate
constexpr double kGateScale = 1 / 16.0;  // of gla's gate: without it, states would forget too soon

}  // namespace

GateWeights gate_weights(const ModelConfig& c) {
  const int64_t heads = c.linear_heads(), inner = heads * c.linear_head_dim();
  switch (c.linear.kind) {
    case LinearVariant::kGla:
      return {.all = kRank * (c.width + inner) + inner, .products = kRank * (c.width + inner)};
    case LinearVariant::kGatedDelta:
      return {.all = 2 * c.width * heads + 2 * heads, .products = 2 * c.width * heads};
    case LinearVariant::kLightning:
    case LinearVariant::kRetention:
    case LinearVariant::kBasic:
      return {};
  }
  check_failed(__FILE__, __LINE__, "every variant is listed");
}

LinearGates::LinearGates(const ModelConfig& config, DType dtype, const BlockParameters& parameters)
    : dtype_(dtype), heads_(config.linear_heads()), dim_(config.linear_head_dim()) {
  if (config.linear.kind == LinearVariant::kGla) {
    kind_ = config.linear.kind;
    low_ = parameters.linear("linear_attn.gk_proj.0", kRank, config.width);
    high_ = parameters.linear("linear_attn.gk_proj.1", heads_ * dim_, kRank);
    bias_ = parameters.constant("linear_attn.gk_proj.1.bias", heads_ * dim_, 0.0);
  }
  if (config.linear.kind == LinearVariant::kGatedDelta) {
    kind_ = config.linear.kind;
    decay_ = parameters.linear("linear_attn.a_proj", heads_, config.width);
    strength_ = parameters.linear("linear_attn.b_proj", heads_, config.width);
    // Scattered around the middle of where the published ones start: A from 0 to 16, and a step
    // softplus(dt) from 0.001 to 0.1.
    a_log_ = parameters.scattered("linear_attn.A_log", heads_, std::log(8.0), 1.0);
    dt_ = parameters.scattered("linear_attn.dt_bias", heads_, std::log(std::expm1(0.01)), 1.0);
  }
}

void LinearGates::allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows,
                           BlockActivations& a) const {
  const DType acc = accumulator(dtype_);
  const auto take = [&](A activation, DType dtype, const Shape& shape) {
    if (keeps(policy, activation) == kept) a[activation] = arena.allocate(dtype, shape);
  };
  if (kind_ == LinearVariant::kGla) {
    take(A::kGateRank, dtype_, {rows, kRank});
    take(A::kRawGate, dtype_, {rows, heads_ * dim_});
    take(A::kLogGate, acc, {rows, heads_, dim_});
  }
  if (kind_ == LinearVariant::kGatedDelta) {
    take(A::kRawGate, dtype_, {rows, heads_});
    take(A::kRawBeta, dtype_, {rows, heads_});
    take(A::kLogGate, acc, {rows, heads_});
    take(A::kBeta, acc, {rows, heads_});
  }
}

void LinearGates::forward(const Context& ctx, BlockActivations& a) const {
  if (kind_ == LinearVariant::kGla) {
    linear_forward(ctx, a[A::kNormed1], low_, a[A::kGateRank]);
    linear_forward(ctx, a[A::kGateRank], high_, a[A::kRawGate]);
    add_bias(ctx, bias_, a[A::kRawGate]);
    kernels::activation_forward(ctx, {.activation = kernels::Activation::kLogSigmoid,
                                      .scale = kGateScale,
                                      .x = a[A::kRawGate],
                                      .y = all_heads(a[A::kLogGate])});
  }
  if (kind_ == LinearVariant::kGatedDelta) {
    linear_forward(ctx, a[A::kNormed1], decay_, a[A::kRawGate]);
    kernels::decay_gate_forward(
        ctx, {.x = a[A::kRawGate], .a_log = a_log_.use(), .bias = dt_.use(), .y = a[A::kLogGate]});
    linear_forward(ctx, a[A::kNormed1], strength_, a[A::kRawBeta]);
    kernels::activation_forward(
        ctx, {.activation = kernels::Activation::kSigmoid, .x = a[A::kRawBeta], .y = a[A::kBeta]});
  }
}

void LinearGates::allocate_gradients(Arena& arena, int64_t rows, MixerGradients& g) const {
  const DType acc = accumulator(dtype_);
  if (kind_ == LinearVariant::kGla) g.dlog_gate = arena.allocate(acc, {rows, heads_, dim_});
  if (kind_ == LinearVariant::kGatedDelta) {
    g.dlog_gate = arena.allocate(acc, {rows, heads_});
    g.dbeta = arena.allocate(acc, {rows, heads_});
  }
}

void LinearGates::backward(const Context& ctx, const BlockActivations& a, const MixerGradients& g,
                           TensorView dnormed) const {
  Arena::Scope scope(*ctx.scratch);
  if (kind_ == LinearVariant::kGla) backward_gla(ctx, a, g, dnormed);
  if (kind_ == LinearVariant::kGatedDelta) backward_delta(ctx, a, g, dnormed);
}

void LinearGates::backward_gla(const Context& ctx, const BlockActivations& a,
                               const MixerGradients& g, TensorView dnormed) const {
  const TensorView draw = ctx.scratch->allocate(dtype_, a[A::kRawGate].shape());
  kernels::activation_backward(ctx, {.activation = kernels::Activation::kLogSigmoid,
                                     .scale = kGateScale,
                                     .dy = all_heads(g.dlog_gate),
                                     .x = a[A::kRawGate],
                                     .dx = draw});
  bias_backward(ctx, draw, bias_);
  const TensorView drank = ctx.scratch->allocate(dtype_, a[A::kGateRank].shape());
  linear_backward(ctx, draw, a[A::kGateRank], high_, drank, Write::kOverwrite);
  linear_backward(ctx, drank, a[A::kNormed1], low_, dnormed, Write::kAdd);
}

void LinearGates::backward_delta(const Context& ctx, const BlockActivations& a,
                                 const MixerGradients& g, TensorView dnormed) const {
  const TensorView draw = ctx.scratch->allocate(dtype_, a[A::kRawGate].shape());
  kernels::decay_gate_backward(ctx, {.dy = g.dlog_gate,
                                     .x = a[A::kRawGate],
                                     .a_log = a_log_.use(),
                                     .bias = dt_.use(),
                                     .dx = draw,
                                     .da_log = a_log_.grad_or(*ctx.scratch),
                                     .dbias = dt_.grad_or(*ctx.scratch)});
  linear_backward(ctx, draw, a[A::kNormed1], decay_, dnormed, Write::kAdd);
  kernels::activation_backward(ctx, {.activation = kernels::Activation::kSigmoid,
                                     .dy = g.dbeta,
                                     .x = a[A::kRawBeta],
                                     .dx = draw});
  linear_backward(ctx, draw, a[A::kNormed1], strength_, dnormed, Write::kAdd);
}

}  // namespace longhaul::model
