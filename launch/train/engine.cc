#include "launch/train/engine.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/core/transfer.h"
#include "kernels/pointwise.h"
#include "launch/train/device.h"
#include "launch/train/flops.h"
#include "launch/train/load_weights.h"
#include "launch/train/peak.h"
#include "launch/train/server.h"
#include "launch/train/server_buffers.h"
#include "model/attention_options.h"
#include "parallel/layout/joint.h"
#include "parallel/layout/load.h"

namespace longhaul::launch {

const parallel::LayoutKind& layout_kind(const Config& config) {
  return parallel::layout_kind(config.parallel().layout());
}

parallel::TokenLayout make_layout(const Config& config, int ranks) {
  return layout_kind(config).make(config.data().sequence_length(), ranks);
}

bool is_disaggregated(const Config& config) {
  return config.parallel().strategy() == kDisaggregated;
}

parallel::TokenLayout attention_layout(const Config& config) {
  const Parallel& parallel = config.parallel();
  const parallel::TokenLayout of_one = make_layout(config, parallel.sequence());
  if (!is_disaggregated(config)) return of_one;
  return parallel::side_by_side(
      std::vector<parallel::TokenLayout>(static_cast<size_t>(parallel.data()), of_one),
      parallel.servers());
}

static parallel::SampleLayout sample_layout(const Config& config, double row_price) {
  const parallel::LayoutKind& kind = layout_kind(config);
  if (kind.make_for == nullptr) return {};
  const parallel::BalancedOptions options{.row_price = row_price};
  return [&kind, options](const parallel::Documents& documents, const parallel::Mask& mask,
                          int ranks) { return kind.make_for(documents, mask, ranks, options); };
}

parallel::TokenLayout make_layout(const Config& config, int ranks,
                                  const parallel::Documents& documents, double row_price) {
  const auto of_sample = sample_layout(config, row_price);
  return of_sample ? of_sample(documents, attention_options(config).mask, ranks)
                   : make_layout(config, ranks);
}

parallel::CoreAttentionOptions attention_options(const Config& config) {
  parallel::CoreAttentionOptions options =
      model::attention_options(model_config(config), dtype(config));
  options.strategy = config.parallel().strategy();
  options.backward_strategy = config.parallel().backward_strategy();
  // Windows are memory of the host, for keys that other ranks read.
  options.in_place = config.parallel().in_place() && config.device() == Config::CPU &&
                     !is_disaggregated(config) && model_config(config).softmax_layers() > 0;
  options.ranks_per_node = config.parallel().ranks_per_node();
  options.gather_heads = config.parallel().gather_heads();
  return options;
}

parallel::CoreAttentionOptions attention_options(const Config& config,
                                                 const SettledStrategies& settled) {
  parallel::CoreAttentionOptions options = attention_options(config);
  options.strategy = settled.forward;
  options.backward_strategy = settled.backward;
  options.ranks_per_node = settled.ranks_per_node;
  if (is_disaggregated(config)) {
    const auto of_one = [config, row_price = settled.row_price](
                            const parallel::Documents& documents, const parallel::Mask&,
                            int ranks) { return make_layout(config, ranks, documents, row_price); };
    options.sample_layout = parallel::joint_layout(of_one, config.data().sequence_length(),
                                                   config.parallel().sequence());
    options.servers.buffer_bytes = server_buffer_bytes(config);
    options.servers.ranks = server_ranks(config);
    options.servers.nano_batches = config.parallel().nano_batches();
    options.profile = settled.profile;
  } else {
    options.sample_layout = sample_layout(config, settled.row_price);
  }
  return options;
}

model::LinearAttentions::Options linear_options(const Config& config, const std::string& method) {
  // Ranks of a balanced layout have about two.
  constexpr int64_t kMostRunsOfChangingLayouts = 4;
  return {.dtype = dtype(config),
          .method = method,
          .most_runs = layout_kind(config).make_for == nullptr ? 0 : kMostRunsOfChangingLayouts,
          .decay_bound = config.parallel().linear_decay_bound()};
}

static int64_t first_linear_layer(const model::ModelConfig& model) {
  int64_t layer = 0;
  while (!model.is_linear(layer)) ++layer;
  return layer;
}

std::vector<double> slopes_of_layer(const Config& config, int64_t layer) {
  const model::ModelConfig model = model_config(config);
  const parallel::LinearAttentionOptions options =
      model::linear_attention_options(model, dtype(config), model.linear_key_dim(layer));
  if (options.kind != parallel::LinearKind::kDecay) return {};
  return linear_slopes(model.linear, model.linear_heads(), layer, model.layers);
}

std::vector<double> first_linear_slopes(const Config& config) {
  const model::ModelConfig model = model_config(config);
  if (model.linear_layers() == 0) return {};
  return slopes_of_layer(config, first_linear_layer(model));
}

std::optional<parallel::LinearAttentionOptions> first_linear_attention(const Config& config) {
  const model::ModelConfig model = model_config(config);
  if (model.linear_layers() == 0) return std::nullopt;
  const int64_t layer = first_linear_layer(model);
  parallel::LinearAttentionOptions options =
      model::linear_attention_options(model, dtype(config), model.linear_key_dim(layer));
  const model::LinearAttentions::Options configured = linear_options(config, "");
  options.most_runs = configured.most_runs;
  options.decay_bound = configured.decay_bound;
  return options;
}

namespace {

parallel::AdamWOptions optimizer_options(const Config& config) {
  const Train& train = config.train();
  return {.beta1 = train.beta1(),
          .beta2 = train.beta2(),
          .eps = train.adam_eps(),
          .weight_decay = train.weight_decay(),
          .clip_norm = train.clip_norm()};
}

model::ModelOptions model_options(const Config& config) {
  return {.dtype = dtype(config),
          .activations = config.memory().activations() == Memory::RECOMPUTE
                             ? model::ActivationPolicy::kRecompute
                             : model::ActivationPolicy::kKeep,
          .loss_tile_rows = config.memory().loss_tile_rows()};
}

}  // namespace

Engine::Replica::Replica(Engine& engine, const Config& config, RankMemory& memory)
    : ctx(engine.rank_.context(memory.workspace)),
      store(dtype(config), engine.mesh().trainers().size()),
      model(model::architecture(engine.model_config_.architecture)
                .make(engine.model_config_, model_options(config), store)) {
  store.allocate(ctx, memory.parameters, memory.gradients);
  store.initialize(ctx, config.train().seed());
  optimizer = std::make_unique<parallel::ShardedOptimizer>(
      ctx, engine.mesh().trainers(), store, optimizer_options(config), memory.optimizer);
  if (!ctx.measuring()) optimizer->adopt_values(ctx);
}

Engine::Engine(dist::Group& world, const Config& config, const EngineOptions& options)
    : rank_(world, config, options),
      model_config_(model_config(config)),
      dtype_(dtype(config)),
      seed_(config.train().seed()),
      memory_(rank_.reserve([&] {
        // A method may refuse the layout.
        linear_.emplace(mesh().sequence(), layout(), model_config_,
                        linear_options(config, strategies().linear_method));
        return measure(config);
      })),
      replica_(*this, config, memory_) {
  if (config.train().cuda_graph()) pass_graph_.emplace();
}

// One step with everything that may happen in it, on shapes alone.
RankMemory Engine::measure(const Config& config) {
  RankMemory memory = RankMemory::measure(rank_.stream().device);
  Replica replica(*this, config, memory);
  model::NumericsProbe probe;
  model::StepContext step{replica.ctx,       memory.activations, memory.communication,
                          rank_.attention(), *linear_,           &probe,
                          dropout_key({})};
  const auto rows = static_cast<size_t>(layout().rows(mesh().sequence_rank()));
  const parallel::Shard shard{.tokens = std::vector<int32_t>(rows),
                              .labels = std::vector<int32_t>(rows),
                              .positions = std::vector<int64_t>(rows)};
  {
    Arena::Scope scope(memory.activations);
    replica.model->load(step, shard);
    replica.model->forward(step, {.training = true});
    replica.model->backward(step);
    kernels::sum(replica.ctx, replica.model->row_loss());
  }
  replica.optimizer->reduce_gradients(replica.ctx);
  for (const auto& bucket : replica.store.buckets()) {
    if (bucket.trained) kernels::find_non_finite(replica.ctx, bucket.gradients);
  }
  replica.optimizer->step(replica.ctx, 0.0, 1);
  return memory;
}

model::StepContext Engine::step_context(model::NumericsProbe* probe) {
  return {replica_.ctx, memory_.activations, memory_.communication, rank_.attention(), *linear_,
          probe};
}

std::optional<RandomKey> Engine::dropout_key(const Sample& sample) const {
  if (model_config_.attention.dropout == 0) return std::nullopt;
  return model::dropout_key(seed_, sample.index);
}

parallel::Shard Engine::shard_of(const Sample& sample, Duty duty, bool dropout,
                                 const parallel::Documents* next) {
  const bool drops = dropout && model_config_.attention.dropout > 0;
  rank_.call({.duty = duty, .dropout_sample = drops ? std::optional(sample.index) : std::nullopt},
             &sample.documents, next);
  linear_->prepare(sample.documents, layout());
  return parallel::take(layout(), sample.documents, sample.tokens, sample.labels,
                        mesh().sequence_rank());
}

double Engine::accumulate(const Sample& sample, double grad_scale, model::NumericsProbe* probe,
                          const parallel::Documents* next) {
  Arena::Scope scope(memory_.activations);
  const parallel::Shard shard = shard_of(sample, Duty::kForwardAndBackward, /*dropout=*/true, next);
  model::StepContext step = step_context(probe);
  step.dropout_key = dropout_key(sample);
  replica_.model->load(step, shard);
  const auto passes = [&](const Stream& stream) {
    step.ctx.stream = stream;
    replica_.model->forward(step, {.training = true, .grad_scale = grad_scale});
    replica_.model->backward(step);
  };
  if (pass_graph_) {
    pass_graph_->run(replica_.ctx.stream, {sample.documents, grad_scale}, passes);
  } else {
    passes(replica_.ctx.stream);
  }
  return kernels::sum(replica_.ctx, replica_.model->row_loss());
}

void Engine::update(double learning_rate, int64_t step) {
  replica_.optimizer->step(replica_.ctx, learning_rate, step);
  replica_.store.zero_gradients(replica_.ctx);
}

void Engine::evaluate(const Sample& sample, PositionLoss& buckets) {
  Arena::Scope scope(memory_.activations);
  const parallel::Shard shard = shard_of(sample, Duty::kForward, /*dropout=*/false);
  model::StepContext step = step_context();
  replica_.model->load(step, shard);
  replica_.model->forward(step, {.training = false});
  const Tensor row_loss =
      on_host(replica_.ctx.stream, replica_.model->row_loss(), replica_.ctx.poll);
  add_by_position(row_loss, shard, layout(), mesh().sequence_rank(), buckets);
}

void Engine::evaluate_nothing() {
  if (!rank_.disaggregated()) return;
  const Call call{.duty = Duty::kForward, .dropout_sample = std::nullopt};
  rank_.call(call, nullptr);
  serve(rank_, replica_.ctx, memory_.communication, model_config_, call, seed_);
}

std::optional<std::string> Engine::find_non_finite(const Sample& sample) {
  Arena::Scope scope(memory_.activations);
  const parallel::Shard shard = shard_of(sample, Duty::kForward, /*dropout=*/true);
  model::NumericsProbe probe;
  model::StepContext step = step_context(&probe);
  step.dropout_key = dropout_key(sample);
  replica_.model->load(step, shard);
  replica_.model->forward(step, {.training = false});
  if (probe.finding()) return probe.finding();
  // Backward goes from the last parameter to the first.
  const std::vector<parallel::ParameterStore::Entry>& entries = replica_.store.entries();
  for (auto entry = entries.rbegin(); entry != entries.rend(); ++entry) {
    if (!entry->spec.trained) continue;
    const TensorView gradient =
        replica_.store.bucket_of(*entry).gradients.rows(entry->offset, entry->size());
    const int64_t index = kernels::find_non_finite(replica_.ctx, gradient);
    if (index >= 0) {
      return absl::StrCat("gradient of ", entry->spec.name, ", element ", index);
    }
  }
  return std::nullopt;
}

double Engine::sample_flops() {
  return training_flops(model_config_, layout().rows(rank_.mesh().sequence_rank()),
                        rank_.own_area());
}

double Engine::measured_peak() {
  rank_.call({.duty = Duty::kMeasurePeak, .dropout_sample = std::nullopt}, nullptr);
  return rank_.sum_of_peaks(replica_.ctx, dtype_);
}

void Engine::start_from(const std::string& checkpoint) {
  std::vector<WeightSlice> slices;
  for (const parallel::ShardedOptimizer::Range& range : replica_.optimizer->ranges()) {
    slices.push_back(
        {.entry = range.entry, .begin = range.begin, .end = range.end, .values = range.master});
  }
  load_weights(mesh().trainers(), replica_.ctx, checkpoint, model_config_, dtype_, slices);
  state_loaded();
}

checkpoint::State Engine::state() const {
  wait_until_idle(replica_.ctx.stream, replica_.ctx.poll);
  checkpoint::State state;
  for (const parallel::ShardedOptimizer::Range& range : replica_.optimizer->ranges()) {
    const auto add = [&](const char* prefix, const TensorView& data) {
      state.push_back({.name = prefix + range.entry->spec.name,
                       .shape = range.entry->spec.shape,
                       .begin = range.begin,
                       .end = range.end,
                       .data = data});
    };
    add("", range.master);
    if (!range.entry->spec.trained) continue;
    add("adam_m/", range.m);
    add("adam_v/", range.v);
  }
  return state;
}

}  // namespace longhaul::launch
