// What a linear layer with gates makes of its input beside queries, keys and values, each a
// projection of the layer's own:
//
//   gla (Yang et al. 2024)
//     log_gate [T, H, D] = log sigmoid(x W1 W2 + b) / 16, W1 to 16 dimensions
//   gated_delta (Gated DeltaNet, Yang et al. 2025)
//     log_gate [T, H] = -e^A softplus(x Wa + dt)     beta [T, H] = sigmoid(x Wb)
//
// Gates are in the accumulator type: they are summed up along the sequence.
#pragma once

#include <optional>

#include "model/block_parameters.h"
#include "model/linear.h"
#include "model/mixer.h"

namespace longhaul::model {

// Weights of the gates of one layer: of all, and of those in matrix products.
struct GateWeights {
  int64_t all = 0, products = 0;
};
GateWeights gate_weights(const ModelConfig& config);

class LinearGates {
 public:
  LinearGates(const ModelConfig& config, DType dtype, const BlockParameters& parameters);

  bool gated() const { return kind_ != LinearVariant::kLightning; }  // whether there are any
  void allocate(Arena& arena, ActivationPolicy policy, bool kept, int64_t rows,
                BlockActivations& a) const;
  void forward(const Context&, BlockActivations& a) const;
  // Gradients of kLogGate and kBeta, in workspace.
  void allocate_gradients(Arena& arena, int64_t rows, MixerGradients& g) const;
  // Adds to dnormed [T, C] and to the parameters' gradients.
  void backward(const Context&, const BlockActivations& a, const MixerGradients& g,
                TensorView dnormed) const;

 private:
  void backward_gla(const Context&, const BlockActivations& a, const MixerGradients& g,
                    TensorView dnormed) const;
  void backward_delta(const Context&, const BlockActivations& a, const MixerGradients& g,
                      TensorView dnormed) const;

  LinearVariant kind_ = LinearVariant::kLightning;  // stands for all that have no gates
  DType dtype_;
  int64_t heads_, dim_;
  Projection low_, high_;           // gla: W1 [16, C], W2 [H D, 16]
  parallel::Parameter bias_;        // and b [H D]
  Projection decay_, strength_;     // gated_delta: Wa, Wb [H, C]
  parallel::Parameter a_log_, dt_;  // and A, dt [H]
};

}  // namespace longhaul::model
