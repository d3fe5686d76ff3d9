// A trained model on the ranks of a job that reads texts and says what may follow. One text at a
// time is spread over all ranks; its keys, values and states stay where they were made
// (model/inference_state.h).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dist/mesh.h"
#include "kernels/core/thread_pool.h"
#include "launch/config/config.h"
#include "launch/data/batch.h"
#include "launch/train/position_loss.h"
#include "launch/train/strategy_choice.h"
#include "model/inference_state.h"
#include "model/model.h"

namespace longhaul::launch {

class Inference {
 public:
  // Collective over `world`, which must outlive this; so is everything else. Loads the weights.
  // `config`: of inference_config(); its sequence_length is that of a typical text, by which
  // strategy "auto" goes. RoPE whose base grows with the length (kind dynamic) goes by each text's,
  // what may follow included. Throws the same Error on every rank.
  Inference(dist::Group& world, const Config& config, const std::string& checkpoint);
  ~Inference();

  // Begins a text anew, with memory for `new_tokens` more: the logits of the token after it, f64
  // [V], on rank 0; empty elsewhere. Throws Error(kEnvironment) if memory is too small.
  std::vector<double> read(const std::vector<int32_t>& prompt, int64_t new_tokens);
  // Goes on with a token that all ranks name: the logits of the one after it, as read().
  std::vector<double> next(int32_t token);

  // Adds the losses of this rank's tokens of a sample. There is no text to go on with afterwards.
  void evaluate(const Sample& sample, PositionLoss& buckets);

 private:
  struct Sizes {
    int64_t tokens = 0;
    int64_t new_tokens = -1;  // -1: losses instead of what may follow
    bool operator==(const Sizes&) const = default;
  };
  struct Passes;  // attention and memory for texts of some size

  void load(const std::string& checkpoint);
  Context context(Arena& scratch);
  void prepare(const Sizes& sizes);
  void measure(Passes& passes);
  model::StepContext step(Passes& passes, const Context& ctx);
  void reserve(Passes& passes);
  std::vector<double> on_rank_0(const TensorView& logits) const;

  dist::Group& world_;
  Config config_;
  model::ModelConfig model_config_;
  DType dtype_;
  OwnedStream stream_;
  dist::Mesh mesh_;
  std::unique_ptr<dist::Group> alone_;
  ThreadPool pool_;
  SettledStrategies strategies_;
  parallel::ParameterStore store_;
  std::unique_ptr<model::Model> model_;
  std::optional<Arena> weights_;
  std::unique_ptr<Passes> passes_;
  std::optional<model::InferenceState> state_;
};

}  // namespace longhaul::launch
