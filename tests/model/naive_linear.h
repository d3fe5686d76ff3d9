// The linear-attention sublayer written out in fp64, token by token, as the recurrence of its
// state. Shares no code with the model: its own slopes, activations, norms and relative positions.
#pragma once

#include <cstdint>
#include <vector>

#include "model/config.h"
#include "tests/model/naive_llama.h"

namespace longhaul::test {

// What layer `layer` adds to the residual stream for each token, from its normed inputs (one vector
// a token). first[t]: the first token of t's document.
std::vector<std::vector<double>> naive_linear_attention(
    const model::ModelConfig& config, const ParameterValues& values, int64_t layer,
    const std::vector<std::vector<double>>& inputs, const std::vector<size_t>& first);

}  // namespace longhaul::test
