// A trained model as it lies on disk, for generation and evaluation.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "launch/config/config.h"
#include "launch/tokenizer/tokenizer.h"

namespace longhaul::launch {

struct TrainedModel {
  std::string checkpoint;  // the folder of one
  std::string run;         // the run folder it is in; "" if it is in none
  Config config;           // as it was trained with
};

// `path`: a run folder, whose newest complete checkpoint is taken, a folder of checkpoints, or one
// checkpoint. Throws Error(kCheckpoint) if there is none.
TrainedModel find_model(const std::string& path);

// The configuration to run a model with: of the trained one's, what the model is, dtype and device;
// one text over all ranks of the job, by ring on layout zigzag unless `overrides` say otherwise.
// Resolved for texts of `tokens`. Throws Error(kConfig).
Config inference_config(const Config& trained, const std::vector<std::string>& overrides,
                        int64_t tokens, int ranks, int threads);

// `given`, a file or "bytes"; or the one that came with the model (<run>/huggingface); else bytes,
// if the model has as many tokens or no text is wanted, but numbers of tokens. Throws
// Error(kConfig).
std::unique_ptr<const Tokenizer> tokenizer_of(const TrainedModel& model, const std::string& given,
                                              bool for_text = true);

// Tokens after which a text is over: the tokenizer's end of text, and those that the model's
// generation_config.json names. Throws Error(kData) if that file is damaged.
std::vector<int32_t> end_tokens(const TrainedModel& model, const Tokenizer& tokenizer);

// Throws Error(kData) for a token that the model has no embedding of.
void check_vocabulary(const std::vector<int32_t>& tokens, const Config& config,
                      const std::string& what);

}  // namespace longhaul::launch
