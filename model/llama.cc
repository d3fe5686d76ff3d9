#include "model/llama.h"

#include <algorithm>
#include <cmath>

#include "kernels/core/transfer.h"
#include "kernels/embedding.h"
#include "kernels/linear_cross_entropy.h"
#include "kernels/lrpe.h"
#include "kernels/pointwise.h"
#include "kernels/rope.h"
#include "model/linear.h"

namespace longhaul::model {

namespace {

TensorView upload(const Context& ctx, Arena& arena, std::span<const int32_t> values) {
  const TensorView view = arena.allocate(DType::kI32, {static_cast<int64_t>(values.size())});
  if (ctx.measuring()) return view;
  const Tensor host(DType::kI32, view.shape());
  std::ranges::copy(values, host.span<int32_t>().begin());
  longhaul::upload(ctx.stream, host, view);
  return view;
}

}  // namespace

Llama::Llama(const ModelConfig& config, const ModelOptions& options,
             parallel::ParameterStore& store)
    : config_(config), options_(options) {
  constexpr double kStandardDeviation = 0.02;
  embedding_ = store.declare({.name = "model.embed_tokens.weight",
                              .shape = {config.vocabulary, config.width},
                              .initializer = {.standard_deviation = kStandardDeviation},
                              .trained = config.trains_weights(),
                              .bucket = 0});
  int bucket = 1;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    blocks_.emplace_back(config, options.dtype, store, layer, bucket++);
  }
  norm_ = Norm(config, config.norm, "model.norm.weight", config.width, store, bucket);
  output_ = config.tied_embeddings
                ? embedding_
                : store.declare({.name = "lm_head.weight",
                                 .shape = {config.vocabulary, config.width},
                                 .initializer = {.standard_deviation = kStandardDeviation},
                                 .trained = config.trains_weights(),
                                 .bucket = bucket});
  activations_.resize(blocks_.size());
}

void Llama::load(StepContext& step, const parallel::Shard& shard) {
  kernels::check_tokens(shard.tokens, config_.vocabulary);
  kernels::check_labels(shard.labels, config_.vocabulary);
  tokens_ = upload(step.ctx, step.activations, shard.tokens);
  labels_ = upload(step.ctx, step.activations, shard.labels);
  positions_ = position_tables(step, shard);
}

void Llama::embed(StepContext& step) {
  const TensorView out = step.activations.allocate(options_.dtype, {tokens_.dim(0), config_.width});
  kernels::embedding_forward(step.ctx, {.tokens = tokens_, .table = embedding_.use(), .out = out});
  scale_embedding(step.ctx, out);
  activations_[0][Activation::kInput] = out;
}

PositionTables Llama::position_tables(StepContext& step, const parallel::Shard& shard) const {
  const DType acc = accumulator(options_.dtype);
  PositionTables tables;
  if (config_.softmax_layers() > 0 && !config_.attention.alibi) {
    const Shape shape{shard.rows(), config_.head_dim / 2};
    const TensorView cos = step.activations.allocate(acc, shape);
    const TensorView sin = step.activations.allocate(acc, shape);
    if (!step.ctx.measuring()) {
      kernels::RopeOptions rope = config_.rope;
      if (step.text_length > 0) rope.length = step.text_length;
      kernels::rope_table(step.ctx.stream, rope, shard.positions, config_.head_dim, cos, sin);
    }
    tables.rope_cos = cos;
    tables.rope_sin = sin;
  }
  if (!config_.linear.lrpe_layers.empty()) {
    const Shape shape{shard.rows(), config_.linear_heads(), config_.linear_head_dim()};
    const TensorView cos = step.activations.allocate(acc, shape);
    const TensorView sin = step.activations.allocate(acc, shape);
    if (!step.ctx.measuring()) {
      kernels::lrpe_table(step.ctx.stream, kernels::lrpe_frequencies(shape[1], shape[2]),
                          shard.positions, cos, sin);
    }
    tables.lrpe_cos = cos;
    tables.lrpe_sin = sin;
  }
  return tables;
}

// As in the first Transformers (Vaswani et al. 2017, section 3.4); forward and backward.
void Llama::scale_embedding(const Context& ctx, TensorView x) const {
  if (!config_.scale_embeddings) return;
  kernels::activation_forward(ctx, {.activation = kernels::Activation::kIdentity,
                                    .scale = std::sqrt(static_cast<double>(config_.width)),
                                    .x = x,
                                    .y = x});
}

void Llama::forward(StepContext& step, const Pass& pass) {
  LONGHAUL_CHECK(pass.loss || !pass.training);
  embed(step);
  const int64_t rows = tokens_.dim(0);
  pass.training ? run_blocks(step, rows) : run_blocks_keeping_nothing(step, rows);
  if (pass.loss) loss(step, pass);
}

void Llama::run_blocks(StepContext& step, int64_t rows) {
  for (size_t l = 0; l < blocks_.size(); ++l) {
    Arena::Scope scope(*step.ctx.scratch);
    BlockActivations& a = activations_[l];
    blocks_[l].allocate(step.activations, options_.activations, /*kept=*/true, rows, step, a);
    blocks_[l].allocate(*step.ctx.scratch, options_.activations, /*kept=*/false, rows, step, a);
    const TensorView output = step.activations.allocate(options_.dtype, {rows, config_.width});
    blocks_[l].forward(step, positions_, a, output);
    (l + 1 < blocks_.size() ? activations_[l + 1][Activation::kInput] : last_) = output;
  }
}

// Takes no more memory than a pass that keeps everything.
void Llama::run_blocks_keeping_nothing(StepContext& step, int64_t rows) {
  TensorView input = activations_[0][Activation::kInput];
  TensorView output = step.activations.allocate(options_.dtype, {rows, config_.width});
  for (size_t l = 0; l < blocks_.size(); ++l) {
    Arena::Scope kept(step.activations), scope(*step.ctx.scratch);
    BlockActivations& a = activations_[l];
    a[Activation::kInput] = input;
    blocks_[l].allocate(step.activations, options_.activations, /*kept=*/true, rows, step, a);
    blocks_[l].allocate(*step.ctx.scratch, options_.activations, /*kept=*/false, rows, step, a);
    blocks_[l].forward(step, positions_, a, output);
    std::swap(input, output);
  }
  last_ = input;
}

void Llama::logits(StepContext& step, int64_t row, TensorView logits) {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const TensorView normed = ctx.scratch->allocate(options_.dtype, {1, config_.width});
  const TensorView rstd = ctx.scratch->allocate(accumulator(options_.dtype), {1});
  norm_.forward(ctx, last_.rows(row, 1), normed, rstd);
  linear_forward(ctx, normed, {.weight = output_}, logits.reshape({1, config_.vocabulary}));
}

void Llama::loss(StepContext& step, const Pass& pass) {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const int64_t rows = last_.dim(0);
  const DType acc = accumulator(options_.dtype);
  rstd_ = step.activations.allocate(acc, {rows});
  row_loss_ = step.activations.allocate(acc, {rows});
  dnormed_ = pass.training ? step.activations.allocate(options_.dtype, {rows, config_.width})
                           : TensorView();
  const TensorView normed = ctx.scratch->allocate(options_.dtype, {rows, config_.width});
  norm_.forward(ctx, last_, normed, rstd_);
  kernels::linear_cross_entropy(
      ctx, {.x = normed,
            .weight = output_.use(),
            .labels = labels_,
            .row_loss = row_loss_,
            .tile_rows = options_.loss_tile_rows,
            .with_gradients = pass.training,
            .grad_scale = pass.grad_scale,
            .dx = dnormed_,
            .dweight = pass.training && output_.trained() ? output_.grad() : TensorView()});
  if (step.probe != nullptr) step.probe->look(ctx, row_loss_, -1, "loss");
}

void Llama::backward(StepContext& step) {
  const Context& ctx = step.ctx;
  Arena::Scope scope(*ctx.scratch);
  const TensorView dx = ctx.scratch->allocate(options_.dtype, last_.shape());
  kernels::fill_zero(ctx, dx);
  norm_.backward(ctx, dnormed_, last_, rstd_, dx);
  for (size_t l = blocks_.size(); l-- > 0;) {
    blocks_[l].backward(step, positions_, options_.activations, activations_[l], dx);
  }
  if (!embedding_.trained()) return;
  scale_embedding(ctx, dx);
  kernels::embedding_backward(ctx, {.tokens = tokens_, .dout = dx, .dtable = embedding_.grad()});
}

}  // namespace longhaul::model
