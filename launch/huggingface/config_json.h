// config.json of a Hugging Face folder <-> the block `model` of a configuration, for the
// architectures whose layers Longhaul has: llama (also SmolLM), mistral, qwen2 and qwen3.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/core/dtype.h"
#include "launch/config/config.pb.h"

namespace longhaul::launch::huggingface {

// The model that the text of a config.json describes. What Longhaul would compute otherwise is
// refused: Error(kCheckpoint) names the field, its value and `path`.
Model read_config(const std::string& text, const std::string& path);

// The text of a config.json for a resolved model, of the architecture that has its features, with
// other fields (tokens of begin and end, ...) as in `base`, the text of another one or "".
// `length`: tokens of a sample that the model was trained on. Throws Error(kCheckpoint), naming the
// field, for a model that none of the architectures can be.
std::string write_config(const Model& model, DType dtype, int64_t length, const std::string& base);

}  // namespace longhaul::launch::huggingface
