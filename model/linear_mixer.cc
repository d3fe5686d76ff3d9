#include "model/linear_mixer.h"

#include <cmath>

#include "kernels/gated_unit.h"
#include "kernels/lrpe.h"
#include "kernels/pointwise.h"
#include "kernels/rms_norm.h"
#include "model/linear.h"

namespace longhaul::model {

namespace {

using A = Activation;

constexpr double kUnitEps = 1e-6;  // keeps a vector of zeros finite

}  // namespace

LinearMixer::LinearMixer(const ModelConfig& config, DType dtype, const BlockParameters& parameters,
                         int64_t layer)
    : config_(config.linear),
      dtype_(dtype),
      layer_(layer),
      heads_(config.linear_heads()),
      dim_(config.linear_head_dim()),
      key_dim_(config.linear_key_dim(layer)),
      lrpe_(config.has_lrpe(layer)),
      unit_(config.linear.kind == LinearVariant::kGatedDelta),
      gates_(config, dtype, parameters) {
  if (!gates_.gated()) slopes_ = linear_slopes(config.linear, heads_, layer, config.layers);
  const int64_t inner = heads_ * dim_;
  wq_ = parameters.linear("linear_attn.q_proj", inner, config.width);
  wk_ = parameters.linear("linear_attn.k_proj", inner, config.width);
  wv_ = parameters.linear("linear_attn.v_proj", inner, config.width);
  if (config_.gate) wg_ = parameters.linear("linear_attn.g_proj", inner, config.width);
  const bool simple = config_.norm == OutputNorm::kSimple;
  norm_ = Norm(config, simple ? NormKind::kSimple : NormKind::kRms,
               parameters.prefix() + "linear_attn.o_norm.weight",
               config_.norm == OutputNorm::kPerHead ? dim_ : inner, parameters.store(),
               parameters.bucket());
  wo_ = parameters.residual("linear_attn.o_proj", inner);
}

void LinearMixer::allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows,
                           StepContext& step, BlockActivations& a) const {
  const DType acc = accumulator(dtype_);
  const auto take = [&](A activation, DType dtype, const Shape& shape) {
    if (keeps(policy, activation) == kept) a[activation] = arena.allocate(dtype, shape);
  };
  const Shape values{rows, heads_, dim_}, keys{rows, heads_, key_dim_};
  if (has_stages()) {
    take(A::kRawQ, dtype_, values);
    take(A::kRawK, dtype_, values);
  }
  if (has_value_feature()) take(A::kRawV, dtype_, values);
  take(A::kQ, dtype_, keys);
  take(A::kK, dtype_, keys);
  take(A::kV, dtype_, values);
  if (wg_) take(A::kOutputGate, dtype_, values);
  gates_.allocate(arena, policy, kept, rows, a);
  take(A::kOut, dtype_, values);
  take(A::kStates, acc, {step.linear.of(key_dim_).runs(), heads_, key_dim_, dim_});
  take(A::kOutRstd, acc, {config_.norm == OutputNorm::kPerHead ? rows * heads_ : rows});
  take(A::kNormedOut, dtype_, values);
  if (wg_) take(A::kGatedOut, dtype_, values);
}

void LinearMixer::feature(const Context& ctx, const PositionTables& positions, TensorView raw,
                          TensorView x) const {
  Arena::Scope scope(*ctx.scratch);
  // Each stage writes what the next one reads, the last one x.
  const auto destination = [&](bool last) {
    return last ? x : ctx.scratch->allocate(dtype_, raw.shape());
  };
  TensorView now = raw;
  if (has_feature()) {
    const TensorView y = destination(!unit_ && !lrpe_);
    kernels::activation_forward(
        ctx, {.activation = config_.feature, .x = all_heads(now), .y = all_heads(y)});
    now = y;
  }
  if (unit_) {
    const TensorView y = destination(!lrpe_);
    kernels::rms_norm_forward(
        ctx, {.x = each_head(now),
              .weight = {},
              .eps = kUnitEps,
              .scale = 1.0 / std::sqrt(static_cast<double>(dim_)),
              .y = each_head(y),
              .rstd = ctx.scratch->allocate(accumulator(dtype_), {now.dim(0) * heads_})});
    now = y;
  }
  if (lrpe_) {
    kernels::lrpe_forward(ctx,
                          {.cos = positions.lrpe_cos, .sin = positions.lrpe_sin, .x = now, .y = x});
  }
}

void LinearMixer::before(const Context& ctx, const PositionTables& positions,
                         BlockActivations& a) const {
  const bool raw = has_stages();
  linear_forward(ctx, a[A::kNormed1], wq_, all_heads(a[raw ? A::kRawQ : A::kQ]));
  linear_forward(ctx, a[A::kNormed1], wk_, all_heads(a[raw ? A::kRawK : A::kK]));
  linear_forward(ctx, a[A::kNormed1], wv_, all_heads(a[has_value_feature() ? A::kRawV : A::kV]));
  if (wg_) linear_forward(ctx, a[A::kNormed1], *wg_, all_heads(a[A::kOutputGate]));
  gates_.forward(ctx, a);
  if (raw) {
    feature(ctx, positions, a[A::kRawQ], a[A::kQ]);
    feature(ctx, positions, a[A::kRawK], a[A::kK]);
  }
  if (has_value_feature()) {
    kernels::activation_forward(ctx, {.activation = config_.value_feature,
                                      .x = all_heads(a[A::kRawV]),
                                      .y = all_heads(a[A::kV])});
  }
}

void LinearMixer::attend(StepContext& step, BlockActivations& a) const {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const DType acc = accumulator(dtype_);
  const TensorView& out = a[A::kOut];
  const TensorView out_acc = dtype_ == acc ? out : ctx.scratch->allocate(acc, out.shape());
  parallel::LinearAttention& attention = step.linear.of(key_dim_);
  attention.announce(layer_, parallel::Direction::kForward);
  // A state is read before it is overwritten.
  const TensorView state =
      step.inference != nullptr ? step.inference->linear_state(layer_) : TensorView();
  const bool continued = step.inference != nullptr && step.inference->decoding();
  auto pending = attention.begin(ctx, step.communication,
                                 {.q = a[A::kQ],
                                  .k = a[A::kK],
                                  .v = a[A::kV],
                                  .slopes = slopes_,
                                  .log_gate = a[A::kLogGate],
                                  .beta = a[A::kBeta],
                                  .out_acc = out_acc,
                                  .states = a[A::kStates],
                                  .initial_state = continued ? state : TensorView(),
                                  .final_state = state});
  attention.finish(ctx, std::move(pending));
  if (dtype_ != acc) kernels::copy(ctx, out_acc, out);
}

TensorView LinearMixer::norm_rows(const TensorView& x) const {
  return config_.norm == OutputNorm::kPerHead ? each_head(x) : all_heads(x);
}

void LinearMixer::after(const Context& ctx, BlockActivations& a, TensorView y) const {
  norm_.forward(ctx, norm_rows(a[A::kOut]), norm_rows(a[A::kNormedOut]), a[A::kOutRstd]);
  if (wg_) {
    kernels::gated_unit_forward(ctx, {.activation = *config_.gate,
                                      .gate = all_heads(a[A::kOutputGate]),
                                      .up = all_heads(a[A::kNormedOut]),
                                      .y = all_heads(a[A::kGatedOut])});
  }
  linear_forward(ctx, all_heads(a[wg_ ? A::kGatedOut : A::kNormedOut]), wo_, y);
}

MixerGradients LinearMixer::gradients(Arena& arena, int64_t rows) const {
  MixerGradients g;
  g.dout = arena.allocate(dtype_, {rows, heads_, dim_});
  g.dq = arena.allocate(dtype_, {rows, heads_, key_dim_});
  g.dk = arena.allocate(dtype_, {rows, heads_, key_dim_});
  g.dv = arena.allocate(dtype_, {rows, heads_, dim_});
  if (wg_) g.dgate = arena.allocate(dtype_, {rows, heads_, dim_});
  gates_.allocate_gradients(arena, rows, g);
  return g;
}

void LinearMixer::backward_after(const Context& ctx, const BlockActivations& a, ConstTensorView dy,
                                 const MixerGradients& g) const {
  Arena::Scope scope(*ctx.scratch);
  const TensorView dlast = ctx.scratch->allocate(dtype_, g.dout.shape());
  linear_backward(ctx, dy, all_heads(a[wg_ ? A::kGatedOut : A::kNormedOut]), wo_, all_heads(dlast),
                  Write::kOverwrite);
  TensorView dnormed = dlast;
  if (wg_) {
    dnormed = ctx.scratch->allocate(dtype_, g.dout.shape());
    kernels::gated_unit_backward(ctx, {.activation = *config_.gate,
                                       .dy = all_heads(dlast),
                                       .gate = all_heads(a[A::kOutputGate]),
                                       .up = all_heads(a[A::kNormedOut]),
                                       .dgate = all_heads(g.dgate),
                                       .dup = all_heads(dnormed)});
  }
  kernels::fill_zero(ctx, g.dout);
  norm_.backward(ctx, norm_rows(dnormed), norm_rows(a[A::kOut]), a[A::kOutRstd], norm_rows(g.dout));
}

void LinearMixer::backward_attend(StepContext& step, const BlockActivations& a,
                                  const MixerGradients& g) const {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const DType acc = accumulator(dtype_);
  const auto in_accumulator = [&](const TensorView& x) {
    return dtype_ == acc ? x : ctx.scratch->allocate(acc, x.shape());
  };
  const TensorView dq_acc = in_accumulator(g.dq), dk_acc = in_accumulator(g.dk),
                   dv_acc = in_accumulator(g.dv);
  parallel::LinearAttention& attention = step.linear.of(key_dim_);
  attention.announce(layer_, parallel::Direction::kBackward);
  attention.backward(ctx, step.communication,
                     {.q = a[A::kQ],
                      .k = a[A::kK],
                      .v = a[A::kV],
                      .dout = g.dout,
                      .slopes = slopes_,
                      .log_gate = a[A::kLogGate],
                      .beta = a[A::kBeta],
                      .states = a[A::kStates],
                      .dq_acc = dq_acc,
                      .dk_acc = dk_acc,
                      .dv_acc = dv_acc,
                      .dlog_gate = g.dlog_gate,
                      .dbeta = g.dbeta});
  if (dtype_ == acc) return;
  kernels::copy(ctx, dq_acc, g.dq);
  kernels::copy(ctx, dk_acc, g.dk);
  kernels::copy(ctx, dv_acc, g.dv);
}

// What it was made from is made again: cheaper than to keep it.
TensorView LinearMixer::unit_backward(const Context& ctx, TensorView dy, TensorView raw) const {
  TensorView x = raw;
  if (has_feature()) {
    x = ctx.scratch->allocate(dtype_, raw.shape());
    kernels::activation_forward(
        ctx, {.activation = config_.feature, .x = all_heads(raw), .y = all_heads(x)});
  }
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim_));
  const TensorView dx = ctx.scratch->allocate(dtype_, raw.shape());
  const TensorView rstd = ctx.scratch->allocate(accumulator(dtype_), {raw.dim(0) * heads_});
  // dx holds the result, which only its scale is wanted of, until it holds the gradient.
  kernels::rms_norm_forward(ctx, {.x = each_head(x),
                                  .weight = {},
                                  .eps = kUnitEps,
                                  .scale = scale,
                                  .y = each_head(dx),
                                  .rstd = rstd});
  kernels::fill_zero(ctx, dx);
  kernels::rms_norm_backward(ctx, {.dy = each_head(dy),
                                   .x = each_head(x),
                                   .weight = {},
                                   .rstd = rstd,
                                   .scale = scale,
                                   .dx = each_head(dx),
                                   .dweight = {}});
  return dx;
}

TensorView LinearMixer::feature_backward(const Context& ctx, const PositionTables& positions,
                                         TensorView dx, TensorView raw) const {
  TensorView dactive = dx;
  if (lrpe_) {
    dactive = ctx.scratch->allocate(dtype_, {dx.dim(0), heads_, dim_});
    kernels::lrpe_backward(
        ctx, {.cos = positions.lrpe_cos, .sin = positions.lrpe_sin, .dy = dx, .dx = dactive});
  }
  if (unit_) dactive = unit_backward(ctx, dactive, raw);
  if (!has_feature()) return dactive;
  const TensorView draw = ctx.scratch->allocate(dtype_, dactive.shape());
  kernels::activation_backward(ctx, {.activation = config_.feature,
                                     .dy = all_heads(dactive),
                                     .x = all_heads(raw),
                                     .dx = all_heads(draw)});
  return draw;
}

void LinearMixer::backward_before(const Context& ctx, const PositionTables& positions,
                                  const BlockActivations& a, const MixerGradients& g,
                                  TensorView dnormed) const {
  const auto project = [&](const TensorView& dx, const Projection& weight, Write write) {
    linear_backward(ctx, all_heads(dx), a[A::kNormed1], weight, dnormed, write);
  };
  {
    Arena::Scope scope(*ctx.scratch);
    project(feature_backward(ctx, positions, g.dq, a[A::kRawQ]), wq_, Write::kOverwrite);
  }
  {
    Arena::Scope scope(*ctx.scratch);
    project(feature_backward(ctx, positions, g.dk, a[A::kRawK]), wk_, Write::kAdd);
  }
  {
    Arena::Scope scope(*ctx.scratch);
    TensorView draw = g.dv;
    if (has_value_feature()) {
      draw = ctx.scratch->allocate(dtype_, g.dv.shape());
      kernels::activation_backward(ctx, {.activation = config_.value_feature,
                                         .dy = all_heads(g.dv),
                                         .x = all_heads(a[A::kRawV]),
                                         .dx = all_heads(draw)});
    }
    project(draw, wv_, Write::kAdd);
  }
  if (wg_) project(g.dgate, *wg_, Write::kAdd);
  gates_.backward(ctx, a, g, dnormed);
}

}  // namespace longhaul::model
