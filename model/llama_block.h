// A transformer block of the Llama family: norm, a mixer of tokens, norm, MLP, with the mixer's
// stages (model/mixer.h) explicit:
//
//   before     input -> norm -> what the mixer reads
//   attention  the mixer's; the only communication
//   after      input + mixer's output -> norm -> MLP -> output
//
// and mirrored in backward. With ModelConfig::residual_scale, the norms lie before the branches
// split.
#pragma once

#include <cstdint>
#include <memory>

#include "model/linear.h"
#include "model/mixer.h"
#include "model/norm.h"

namespace longhaul::model {

class LlamaBlock {
 public:
  LlamaBlock(const ModelConfig& config, DType dtype, parallel::ParameterStore& store, int64_t layer,
             int bucket);

  // Takes what the policy keeps (kept = true) or does not keep (false) of `rows` rows from an
  // arena.
  void allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows, StepContext& step,
                BlockActivations& activations) const;

  // Reads activations[kInput]; writes the block's result to output [T, C].
  void forward(StepContext& step, const PositionTables& positions, BlockActivations& activations,
               TensorView output) const;

  // dx [T, C]: the gradient of the output on entry, of the input on return. Parameter gradients are
  // added to. `policy` tells what has to be made again first.
  void backward(StepContext& step, const PositionTables& positions, ActivationPolicy policy,
                BlockActivations& activations, TensorView dx) const;

 private:
  void before(const Context&, const PositionTables& positions, BlockActivations& a) const;
  void middle(const Context&, BlockActivations& a) const;  // up to the MLP's gated product
  void backward_after(const Context&, BlockActivations& a, TensorView dx,
                      const MixerGradients& g) const;
  void backward_before(const Context&, const PositionTables& positions, BlockActivations& a,
                       const MixerGradients& g, TensorView dx) const;
  // y += residual_scale * x
  void add_scaled(const Context&, ConstTensorView x, TensorView y) const;
  // y += the residual stream x, whose norm is `normed`.
  void add_residual(const Context&, ConstTensorView x, ConstTensorView normed, TensorView y) const;
  // Mirrors add_residual and the norm before it: dx, the gradient of y on entry, becomes that of x.
  // dnormed, the gradient that reached `normed` through a branch, may change.
  void backward_norm(const Context&, const Norm& norm, ConstTensorView x, ConstTensorView rstd,
                     TensorView dnormed, TensorView dx) const;

  ModelConfig config_;
  DType dtype_;
  int64_t layer_;
  Norm norm1_;
  std::unique_ptr<const Mixer> mixer_;
  Norm norm2_;
  Projection wgate_, wup_, wdown_;
};

}  // namespace longhaul::model
