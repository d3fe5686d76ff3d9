// Sizes of a model of the Llama family.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "kernels/core/dtype.h"
#include "kernels/rope.h"
#include "parallel/plan/plan.h"

namespace longhaul::model {

// What attention is beyond causal softmax with RoPE; zero and false: not in use.
struct AttentionConfig {
  int64_t sliding_window =
      0;  // a query sees its last tokens, itself included (Beltagy et al. 2020)
  // A document's first tokens see each other and are seen by all (Raffel et al. 2020). They are
  // given, not predicted: whoever makes the labels leaves those out whose token they would see.
  int64_t prefix_length = 0;
  double soft_cap = 0;  // scores become soft_cap * tanh(score / soft_cap) (Gemma 2, 2024)
  bool alibi = false;   // linear biases instead of RoPE (Press et al. 2022)
  bool sinks = false;   // a learnable sink for each query head (kernels/attention_sink.h)
  double dropout = 0;   // of probabilities, in training (Srivastava et al. 2014)
};

struct ModelConfig {
  std::string architecture = "llama";  // a row of architectures() in model/model.h
  int64_t vocabulary = 256;
  int64_t layers = 4;
  int64_t width = 256;  // of the residual stream
  int64_t heads = 4;
  int64_t kv_heads = 4;
  int64_t head_dim = 64;
  int64_t mlp_width = 768;
  double norm_eps = 1e-5;
  kernels::RopeOptions rope = {};
  bool tied_embeddings = true;
  AttentionConfig attention = {};

  parallel::HeadShape head_shape() const { return {heads, kv_heads, head_dim, head_dim}; }

  // Number of parameters.
  int64_t parameters() const;
  // Throws Error(kConfig) for sizes that cannot be, naming the field, its value and the fix.
  void validate() const;
  // Field -> value, as compared between a checkpoint and a configuration. Attention's options are
  // named where they are in use, so that checkpoints from before an option was known still fit.
  // Dropout may change from run to run.
  std::map<std::string, std::string> describe(DType dtype) const;
};

}  // namespace longhaul::model
