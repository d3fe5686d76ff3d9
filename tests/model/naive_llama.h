// The Llama forward pass written out in fp64 on whole vectors, token by token. Shares no code with
// the model: its own norm, rotation, attention and softmax. Knows every option of attention but
// dropout.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/config.h"
#include "parallel/layout/documents.h"

namespace longhaul::test {

// Values of a parameter by name, row-major.
using ParameterValues = std::function<const std::vector<double>&(const std::string& name)>;

// Loss of every token that has a label (-1: none), 0 elsewhere.
std::vector<double> naive_llama_loss(const model::ModelConfig& config,
                                     const ParameterValues& values,
                                     const std::vector<int32_t>& tokens,
                                     const std::vector<int32_t>& labels,
                                     const parallel::Documents& documents);

}  // namespace longhaul::test
