// Multi-head softmax attention of the Llama family: q, k, v with RoPE, or without it and attention
// with ALiBi, over all ranks by parallel::CoreAttention.
#pragma once

#include <optional>

#include "model/block_parameters.h"
#include "model/linear.h"
#include "model/mixer.h"
#include "model/norm.h"

namespace longhaul::model {

class SoftmaxMixer final : public Mixer {
 public:
  SoftmaxMixer(const ModelConfig& config, DType dtype, const BlockParameters& parameters,
               int64_t layer);

  void allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows, StepContext& step,
                BlockActivations& a) const override;
  void before(const Context&, const PositionTables&, BlockActivations& a) const override;
  void attend(StepContext& step, BlockActivations& a) const override;
  void after(const Context&, BlockActivations& a, TensorView y) const override;
  MixerGradients gradients(Arena& arena, int64_t rows) const override;
  void backward_after(const Context&, const BlockActivations& a, ConstTensorView dy,
                      const MixerGradients& g) const override;
  void backward_attend(StepContext& step, const BlockActivations& a,
                       const MixerGradients& g) const override;
  void backward_before(const Context&, const PositionTables&, const BlockActivations& a,
                       const MixerGradients& g, TensorView dnormed) const override;

 private:
  // With biases, and norms if there are any; x is what is projected, and before a norm.
  void project(const Context&, const BlockActivations& a, const Projection& weight,
               const std::optional<parallel::Parameter>& bias, TensorView x) const;
  void project_backward(const Context&, const BlockActivations& a, ConstTensorView dx,
                        const Projection& weight, const std::optional<parallel::Parameter>& bias,
                        TensorView dnormed, Write write) const;
  // Through the norm of queries or keys, if there is one: dx [T, H, D] becomes the gradient of raw.
  TensorView norm_backward(const Context&, const Norm& norm, TensorView dx, ConstTensorView raw,
                           ConstTensorView rstd) const;
  ConstTensorView sink() const { return sinks_ ? sinks_->use() : ConstTensorView(); }
  std::optional<RandomKey> dropout_key(const StepContext& step) const;
  void attend_to_sample(StepContext& step, const BlockActivations& a, TensorView out_acc) const;
  void attend_to_kept(StepContext& step, const BlockActivations& a, TensorView out_acc) const;

  ModelConfig config_;
  DType dtype_;
  int64_t layer_;
  Projection wq_, wk_, wv_, wo_;
  std::optional<parallel::Parameter> bq_, bk_, bv_, bo_;
  Norm q_norm_, k_norm_;  // where the configuration has them
  std::optional<parallel::Parameter> sinks_;
};

}  // namespace longhaul::model
