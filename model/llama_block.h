// A transformer block of the Llama family in three stages, so that attention can be run elsewhere
// and what is kept can be chosen:
//
//   before     input -> norm -> q, k, v with RoPE, or without it and attention with ALiBi
//   attention  q, k, v -> out, lse               (parallel::CoreAttention; the only communication)
//   after      input + out Wo -> norm -> MLP -> output
//
// and mirrored in backward. Each stage reads and writes the activations named in
// model/activation_policy.h; those that the policy does not keep are made again by the same code.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "model/activation_policy.h"
#include "model/config.h"
#include "model/step_context.h"
#include "parallel/shard/parameters.h"

namespace longhaul::model {

// Empty with ALiBi.
struct RopeAngles {
  ConstTensorView cos, sin;  // [T, D/2]
};

class BlockActivations {
 public:
  TensorView& operator[](Activation a) { return views_[static_cast<size_t>(a)]; }
  const TensorView& operator[](Activation a) const { return views_[static_cast<size_t>(a)]; }

 private:
  std::array<TensorView, kActivationCount> views_;
};

class LlamaBlock {
 public:
  LlamaBlock(const ModelConfig& config, DType dtype, parallel::ParameterStore& store, int64_t layer,
             int bucket);

  // Takes what the policy keeps (kept = true) or does not keep (false) of `rows` rows from an
  // arena.
  void allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows,
                BlockActivations& activations) const;

  // Reads activations[kInput]; writes the block's result to output [T, C].
  void forward(StepContext& step, const RopeAngles& rope, BlockActivations& activations,
               TensorView output) const;

  // dx [T, C]: the gradient of the output on entry, of the input on return. Parameter gradients are
  // added to. `policy` tells what has to be made again first.
  void backward(StepContext& step, const RopeAngles& rope, ActivationPolicy policy,
                BlockActivations& activations, TensorView dx) const;

 private:
  void before(const Context&, const RopeAngles& rope, BlockActivations& a) const;
  void attend(StepContext& step, BlockActivations& a) const;
  void middle(const Context&, BlockActivations& a) const;  // up to the MLP's gated product
  void backward_after(const Context&, BlockActivations& a, TensorView dx, TensorView dout) const;
  void backward_attend(StepContext& step, BlockActivations& a, TensorView dout, TensorView dq,
                       TensorView dk, TensorView dv) const;
  void backward_before(const Context&, const RopeAngles& rope, BlockActivations& a, TensorView dq,
                       TensorView dk, TensorView dv, TensorView dx) const;

  ConstTensorView sink() const { return sinks_ ? sinks_->use() : ConstTensorView(); }
  std::optional<RandomKey> dropout_key(const StepContext& step) const;

  ModelConfig config_;
  DType dtype_;
  int64_t layer_;
  parallel::Parameter norm1_, wq_, wk_, wv_, wo_;
  std::optional<parallel::Parameter> sinks_;
  parallel::Parameter norm2_, wgate_, wup_, wdown_;
};

}  // namespace longhaul::model
