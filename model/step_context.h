// What a model is given for one pass over one shard.
#pragma once

#include <optional>

#include "kernels/core/arena.h"
#include "kernels/core/context.h"
#include "kernels/core/random.h"
#include "model/inference_state.h"
#include "model/linear_attentions.h"
#include "model/numerics_probe.h"
#include "parallel/attention/core_attention.h"

namespace longhaul::model {

struct StepContext {
  Context ctx;           // scratch is the workspace arena
  Arena& activations;    // what lives from forward to backward
  Arena& communication;  // attention's buffers
  parallel::CoreAttention& attention;
  LinearAttentions& linear;        // of the model's linear layers
  NumericsProbe* probe = nullptr;  // looks at every layer's output if given
  // Of this sample (model/attention_options.h), the same forward and backward; none: a pass without
  // dropout, as in evaluation.
  std::optional<RandomKey> dropout_key = {};
  // Of a pass over a prompt, which fills it, or over the one token that follows (then `linear` is
  // its recurrence()). Null: nothing is remembered.
  InferenceState* inference = nullptr;
  // Tokens of the whole text, by which a base of RoPE may grow; 0: as configured.
  int64_t text_length = 0;
};

}  // namespace longhaul::model
