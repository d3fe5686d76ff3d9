// One trainer's machinery for training steps: its part in attention, layout, model, optimizer and
// the memory for them. `longhaul train` and `longhaul bench train` drive the same engine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/state.h"
#include "launch/config/config.h"
#include "launch/data/batch.h"
#include "launch/train/attention_rank.h"
#include "launch/train/pass_graph.h"
#include "launch/train/position_loss.h"
#include "launch/train/rank_memory.h"
#include "launch/train/strategy_choice.h"
#include "model/model.h"
#include "parallel/attention/core_attention.h"
#include "parallel/layout/token_layout.h"
#include "parallel/shard/sharded_optimizer.h"

namespace longhaul::launch {

// Of parallel.layout.
const parallel::LayoutKind& layout_kind(const Config& config);
// The layout of parallel.layout for the ranks that share a sample of one document, or a sample with
// other documents, which has as many rows on every rank; throws Error(kConfig). row_price: of the
// balanced layout, which parallel.row_price may leave open.
parallel::TokenLayout make_layout(const Config& config, int ranks);
parallel::TokenLayout make_layout(const Config& config, int ranks,
                                  const parallel::Documents& documents, double row_price);
// Attention as configured: its strategies may still be "auto", and ranks_per_node 0 (as found); it
// has no layout of a sample yet.
parallel::CoreAttentionOptions attention_options(const Config& config);
// With the strategies and the price of a row that are used.
parallel::CoreAttentionOptions attention_options(const Config& config,
                                                 const SettledStrategies& settled);
// The layout over the ranks that share attention, for samples of one document: of one sample's
// ranks, or under strategy disaggregated of all of the job's.
parallel::TokenLayout attention_layout(const Config& config);
bool is_disaggregated(const Config& config);

// Linear attention as configured; `method` in place of parallel.linear_method, which may be "auto".
model::LinearAttentions::Options linear_options(const Config& config, const std::string& method);
// Of the first linear layer, with no method yet; none if the model has none.
std::optional<parallel::LinearAttentionOptions> first_linear_attention(const Config& config);
// Of the heads of a linear layer; none where decays are not fixed. The second one is of the first
// linear layer.
std::vector<double> slopes_of_layer(const Config& config, int64_t layer);
std::vector<double> first_linear_slopes(const Config& config);

class Engine {
 public:
  // Collective over `world`, which must outlive the engine; servers make a Server meanwhile
  // (server.h). Measures and reserves memory and initialises the parameters; `config` is resolved.
  // Throws Error on bad sizes or lack of memory.
  Engine(dist::Group& world, const Config& config, const EngineOptions& options = {});

  dist::Mesh& mesh() { return rank_.mesh(); }
  AttentionRank& attention_rank() { return rank_; }
  // Of the sample that was used last.
  const parallel::TokenLayout& layout() const { return rank_.layout(); }
  const RankMemory& memory() const { return memory_; }
  parallel::CoreAttention& attention() { return rank_.attention(); }
  const model::LinearAttentions& linear_attention() const { return *linear_; }
  const SettledStrategies& strategies() const { return rank_.strategies(); }
  const Context& context() const { return replica_.ctx; }
  const parallel::ParameterStore& parameters() const { return replica_.store; }
  // None without train.cuda_graph.
  const std::optional<PassGraph>& pass_graph() const { return pass_graph_; }

  // Forward and backward over one sample of this replica: adds the gradients of
  // grad_scale * (sum of token losses) and returns this rank's part of that sum of losses. A probe
  // looks at every layer's output. `next`: the documents of the sample that is accumulated next, if
  // that is known; attention to it is planned meanwhile.
  double accumulate(const Sample& sample, double grad_scale, model::NumericsProbe* probe = nullptr,
                    const parallel::Documents* next = nullptr);

  // Of a replica that has no sample while others evaluate theirs: takes part in what ranks do
  // together.
  void evaluate_nothing();

  // Collective: sums gradients over all trainers; their global norm.
  double reduce_gradients() { return replica_.optimizer->reduce_gradients(replica_.ctx); }
  // Collective: updates the parameters and zeroes the gradients. step counts from 1.
  void update(double learning_rate, int64_t step);

  // Adds the losses of this rank's tokens of a sample, without gradients and without dropout.
  // Collective over the ranks that share attention.
  using PositionLoss = launch::PositionLoss;
  void evaluate(const Sample& sample, PositionLoss& buckets);

  // Runs a sample forward again, looking for the first tensor with a NaN or infinity; then the
  // gradients as they are. Collective over the ranks that share attention.
  std::optional<std::string> find_non_finite(const Sample& sample);

  // Model FLOPs of this rank's share of one sample, forward and backward; see flops.h.
  double sample_flops();

  // Collective. FLOPs a second that the devices of all ranks reach in products of train.dtype: what
  // MFU compares with. Takes some tens of milliseconds.
  double measured_peak();

  // Views of everything that a checkpoint holds, at rest.
  checkpoint::State state() const;
  // Collective over trainers: weights from a checkpoint, of a new run (load_weights.h).
  void start_from(const std::string& checkpoint);
  // Collective; after the state was filled from a checkpoint.
  void state_loaded() { replica_.optimizer->publish_values(replica_.ctx); }

 private:
  // The parts that live in arenas: made once on measuring arenas and once on real ones.
  struct Replica {
    Replica(Engine& engine, const Config& config, RankMemory& memory);
    Context ctx;
    parallel::ParameterStore store;
    std::unique_ptr<model::Model> model;
    std::unique_ptr<parallel::ShardedOptimizer> optimizer;
  };
  RankMemory measure(const Config& config);
  model::StepContext step_context(model::NumericsProbe* probe = nullptr);
  // Begins a pass over a sample, on all ranks that share attention.
  parallel::Shard shard_of(const Sample& sample, Duty duty, bool dropout,
                           const parallel::Documents* next = nullptr);
  // Of a training pass; none if the model has no dropout.
  std::optional<RandomKey> dropout_key(const Sample& sample) const;

  AttentionRank rank_;
  model::ModelConfig model_config_;
  DType dtype_;
  uint64_t seed_;
  std::optional<model::LinearAttentions> linear_;
  RankMemory memory_;
  Replica replica_;
  std::optional<PassGraph> pass_graph_;
};

}  // namespace longhaul::launch
