// Continues a text with a trained model.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dist/group.h"
#include "launch/generate/inference.h"
#include "launch/generate/sampler.h"

namespace longhaul::launch {

struct GenerateOptions {
  int64_t tokens = 128;  // at most
  SamplerOptions sampler = {};
  std::vector<int32_t> end_tokens =
      {};                  // the text is over at one of these, which is not part of it
  int64_t candidates = 0;  // tokens below this are chosen from; 0: all of the model's
};

struct Generated {
  std::vector<int32_t> tokens;
  int64_t prompt_tokens = 0;
  int64_t decoded_tokens = 0;  // passes of one token
  double prompt_seconds = 0, decode_seconds = 0;
};

// Collective over `world`, the inference's ranks. Every rank calls `emit` with each token as soon
// as it is chosen. The same options, prompt and ranks give the same tokens. Throws Error(kNumerics)
// on every rank for logits that are not finite.
Generated generate(dist::Group& world, Inference& inference, const std::vector<int32_t>& prompt,
                   const GenerateOptions& options,
                   const std::function<void(int32_t token)>& emit = {});

}  // namespace longhaul::launch
