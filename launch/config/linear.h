// The fields of a configuration that say what a model's linear-attention layers are.
#pragma once

#include "launch/config/config.pb.h"
#include "model/config.h"

namespace longhaul::launch {

// Fills what is not set of model.pattern, model.linear and what models with linear attention have
// beyond Llama, from the preset `base`; throws Error(kConfig) for what contradicts itself.
void resolve_linear(Model& model, const model::ModelConfig& base);

// Of a resolved configuration.
void linear_config(const Model& from, model::ModelConfig& to);

}  // namespace longhaul::launch
