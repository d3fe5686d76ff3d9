// Llama: embedding, blocks, final norm, output layer (tied to the embedding or not).
#pragma once

#include <vector>

#include "model/llama_block.h"
#include "model/model.h"

namespace longhaul::model {

class Llama final : public Model {
 public:
  Llama(const ModelConfig& config, const ModelOptions& options, parallel::ParameterStore& store);

  void load(StepContext& step, const parallel::Shard& shard) override;
  void forward(StepContext& step, const Pass& pass) override;
  void backward(StepContext& step) override;
  void logits(StepContext& step, int64_t row, TensorView logits) override;
  ConstTensorView row_loss() const override { return row_loss_; }

 private:
  PositionTables position_tables(StepContext& step, const parallel::Shard& shard) const;
  void scale_embedding(const Context&, TensorView x) const;
  void embed(StepContext& step);
  void run_blocks(StepContext& step, int64_t rows);
  void run_blocks_keeping_nothing(StepContext& step, int64_t rows);
  void loss(StepContext& step, const Pass& pass);

  ModelConfig config_;
  ModelOptions options_;
  parallel::Parameter embedding_, output_;  // output_ is embedding_ when tied
  Norm norm_;
  std::vector<LlamaBlock> blocks_;

  // Of what was loaded and the pass over it; memory belongs to step.activations.
  TensorView tokens_, labels_;  // [T]
  PositionTables positions_;
  std::vector<BlockActivations> activations_;
  TensorView last_;      // [T, C] output of the last block
  TensorView rstd_;      // [T]
  TensorView row_loss_;  // [T]
  TensorView dnormed_;   // [T, C] gradient of the final norm's output
};

}  // namespace longhaul::model
