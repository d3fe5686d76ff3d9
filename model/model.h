// What the training loop sees of a model: one rank's part of a forward and a backward pass.
//
// Models are written as if on one device: a shard's rows go through the layers, attention reaches
// the other ranks' rows by itself. To add one: a file with a class derived from Model, a row in
// architectures() and a line in CMakeLists.txt.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "model/activation_policy.h"
#include "model/config.h"
#include "model/step_context.h"
#include "parallel/layout/shard.h"
#include "parallel/shard/parameters.h"

namespace longhaul::model {

struct ModelOptions {
  DType dtype = DType::kF32;
  ActivationPolicy activations = ActivationPolicy::kKeep;
  int64_t loss_tile_rows = 0;  // see kernels/linear_cross_entropy.h
};

struct Pass {
  bool training = true;     // keep what backward needs; else a layer's memory serves the next one
  bool loss = true;         // false, not in training: the last layer's output is all; see logits()
  double grad_scale = 1.0;  // gradients are those of grad_scale * (sum of token losses)
};

class Model {
 public:
  virtual ~Model() = default;

  // Brings this rank's part of a sample to the device: tokens, labels, what positions come to. It,
  // and what a training pass keeps, stays in step.activations until the caller returns it
  // (Arena::Scope).
  virtual void load(StepContext& step, const parallel::Shard& shard) = 0;

  // A pass over what was loaded. step.attention must be prepared for its sample. Without a probe,
  // neither this nor backward() waits for the device on one rank.
  virtual void forward(StepContext& step, const Pass& pass) = 0;

  // After a training forward: adds to the parameters' gradients.
  virtual void backward(StepContext& step) = 0;

  // After a forward pass that is not for training, while its activations are there: what each token
  // of the vocabulary has for following the one at `row`, [V] of the accumulator type.
  virtual void logits(StepContext& step, int64_t row, TensorView logits) = 0;

  // Loss of each row of the last forward pass, [rows], accumulator type; valid until its
  // activations are returned.
  virtual ConstTensorView row_loss() const = 0;
};

// One kind of model: declares its parameters in `store` when made.
struct Architecture {
  std::string_view name;
  std::unique_ptr<Model> (*make)(const ModelConfig& config, const ModelOptions& options,
                                 parallel::ParameterStore& store);
};
std::span<const Architecture> architectures();
// Throws Error(kConfig) with the known names if there is none of this name.
const Architecture& architecture(std::string_view name);

}  // namespace longhaul::model
