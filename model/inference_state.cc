#include "model/inference_state.h"

#include "model/attention_options.h"

namespace longhaul::model {

InferenceState::InferenceState(dist::Group& group, dist::Group& alone,
                               const parallel::TokenLayout& prompt, const ModelConfig& config,
                               DType dtype, int64_t new_tokens)
    : config_(config),
      dtype_(dtype),
      softmax_(group, prompt, attention_options(config, dtype), config.softmax_layers(),
               new_tokens),
      recurrence_(alone, parallel::TokenLayout::contiguous(1, 1), config,
                  {.dtype = dtype, .method = "all_gather"}) {
  int64_t softmax = 0, linear = 0;
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    index_.push_back(config.is_linear(layer) ? linear++ : softmax++);
  }
  recurrence_.prepare(parallel::Documents::whole(1), parallel::TokenLayout::contiguous(1, 1));
}

void InferenceState::allocate(Arena& arena) {
  softmax_.allocate(arena);
  states_.clear();
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    if (!config_.is_linear(layer)) continue;
    states_.push_back(arena.allocate(
        accumulator(dtype_),
        {config_.linear_heads(), config_.linear_key_dim(layer), config_.linear_head_dim()}));
  }
}

}  // namespace longhaul::model
