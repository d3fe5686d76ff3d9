// A prompt, then tokens one at a time, on a group of ranks: the logits after each.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dist/group.h"
#include "model/config.h"

namespace longhaul::test {

struct InferenceCase {
  model::ModelConfig config;
  DType dtype = DType::kF64;
  std::string layout = "zigzag";
  std::string strategy = "ring";
  std::string linear_method = "all_gather";
  int64_t prompt = 20;  // tokens
  int64_t decoded = 7;
};

// The prompt's tokens and those decoded.
std::vector<int32_t> tokens_of(const InferenceCase& c);

using Rows = std::vector<std::vector<double>>;

// Collective. Logits [V] after the prompt and after each decoded token, which all ranks have.
Rows run_inference(dist::Group& group, const InferenceCase& c);

// The same as logarithms of probabilities, by the naive model in f64 over all tokens at once.
Rows naive_log_probabilities(const InferenceCase& c);

Rows log_softmax(const Rows& logits);
// Largest |a - b|; NaN counts.
double largest_difference(const Rows& a, const Rows& b);

// Models and ways to run them that together have every kind of layer and option of attention.
std::vector<InferenceCase> inference_cases(int ranks);

}  // namespace longhaul::test
