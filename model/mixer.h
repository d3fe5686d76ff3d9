// The sublayer of a block that mixes tokens, in three stages, so that attention can be run
// elsewhere and what is kept can be chosen:
//
//   before     normed input -> q, k, v and what else attention reads
//   attention  q, k, v -> out                          (the only communication)
//   after      out -> what is added to the residual stream
//
// and mirrored in backward. One class for each kind of layer. Stages read and write the activations
// of model/activation_policy.h: kNormed1, and those that are theirs. What the policy does not keep
// is made again by the same code; attention never is.
#pragma once

#include <array>
#include <cstdint>

#include "model/activation_policy.h"
#include "model/step_context.h"

namespace longhaul::model {

// Of a shard's tokens, shared by all layers; empty where no layer uses them.
struct PositionTables {
  ConstTensorView rope_cos, rope_sin;  // [T, D/2] of softmax layers
  ConstTensorView lrpe_cos, lrpe_sin;  // [T, H, D] of linear layers
};

class BlockActivations {
 public:
  TensorView& operator[](Activation a) { return views_[static_cast<size_t>(a)]; }
  const TensorView& operator[](Activation a) const { return views_[static_cast<size_t>(a)]; }

 private:
  std::array<TensorView, kActivationCount> views_;
};

// Gradients on their way through the stages. Workspace of one block's backward pass.
struct MixerGradients {
  TensorView dout, dq, dk, dv;  // as kOut, kQ, kK, kV
  TensorView dgate;             // as kOutputGate
  TensorView dlog_gate, dbeta;  // as kLogGate, kBeta
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  // Takes what the policy keeps (kept = true) or does not keep (false) of `rows` rows from an
  // arena.
  virtual void allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows,
                        StepContext& step, BlockActivations& a) const = 0;

  virtual void before(const Context&, const PositionTables&, BlockActivations& a) const = 0;
  virtual void attend(StepContext& step, BlockActivations& a) const = 0;
  // Writes y [T, C].
  virtual void after(const Context&, BlockActivations& a, TensorView y) const = 0;

  virtual MixerGradients gradients(Arena& arena, int64_t rows) const = 0;
  // dy [T, C] -> g.dout. Gradients of parameters are added to, here and below.
  virtual void backward_after(const Context&, const BlockActivations& a, ConstTensorView dy,
                              const MixerGradients& g) const = 0;
  virtual void backward_attend(StepContext& step, const BlockActivations& a,
                               const MixerGradients& g) const = 0;
  // Writes dnormed [T, C]. May change g.
  virtual void backward_before(const Context&, const PositionTables&, const BlockActivations& a,
                               const MixerGradients& g, TensorView dnormed) const = 0;
};

}  // namespace longhaul::model
