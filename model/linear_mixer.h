// Linear attention: Linear-Llama3 (Sun et al. 2025), TransNormerLLM (Qin et al. 2023) and
// MiniMax-01 (Li et al. 2025), by ModelConfig::linear.
//
//   q, k = act(x Wq), act(x Wk), on some layers with LRPE     v = act(x Wv)
//   o = attention(q, k, v) with fixed decays, or with gates (model/linear_gates.h)
//   y = (act(x Wg) * norm(o)) Wo, or norm(o) Wo without an output gate
//
// No RoPE: order comes from the decay. Queries and keys of gated_delta have length 1 in each head.
// Attention runs over all ranks by parallel::LinearAttention.
#pragma once

#include <optional>
#include <vector>

#include "model/block_parameters.h"
#include "model/linear.h"
#include "model/linear_gates.h"
#include "model/mixer.h"
#include "model/norm.h"

namespace longhaul::model {

class LinearMixer final : public Mixer {
 public:
  LinearMixer(const ModelConfig& config, DType dtype, const BlockParameters& parameters,
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
  bool has_feature() const { return config_.feature != kernels::Activation::kIdentity; }
  bool has_value_feature() const { return config_.value_feature != kernels::Activation::kIdentity; }
  // Whether queries and keys are other than projected.
  bool has_stages() const { return has_feature() || unit_ || lrpe_; }
  // Activation, unit length and LRPE, and what their gradient is: raw [T, H, D], x [T, H, Dk].
  void feature(const Context&, const PositionTables&, TensorView raw, TensorView x) const;
  TensorView feature_backward(const Context&, const PositionTables&, TensorView dx,
                              TensorView raw) const;
  // Of what has length 1 to what the activation made of raw.
  TensorView unit_backward(const Context&, TensorView dy, TensorView raw) const;
  // Of heads, or of all heads at once, as the norm takes them.
  TensorView norm_rows(const TensorView& x) const;

  LinearConfig config_;
  DType dtype_;
  int64_t layer_;
  int64_t heads_, dim_, key_dim_;
  bool lrpe_;
  bool unit_;  // queries and keys have length 1
  std::vector<double> slopes_;
  Projection wq_, wk_, wv_, wo_;
  std::optional<Projection> wg_;
  LinearGates gates_;
  Norm norm_;
};

}  // namespace longhaul::model
