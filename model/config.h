// Sizes of a model of the Llama family, and what its layers are.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/rope.h"
#include "model/linear_config.h"
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
  // Biases of the projections to queries, keys and values (Qwen2), and of that from the output;
  // norms of queries and keys in each head, before RoPE (Qwen3).
  bool qkv_bias = false;
  bool output_bias = false;
  bool qk_norm = false;
  double dropout = 0;  // of probabilities, in training (Srivastava et al. 2014)
};

// Of the residual stream, and of a block's end.
enum class NormKind : uint8_t {
  kRms,     // RMSNorm with a weight
  kSimple,  // SRMSNorm: without (TransNormerLLM, Qin et al. 2023)
};
std::span<const Named<NormKind>> norm_kinds();
std::span<const Named<kernels::Activation>> mlp_gates();

// Low-rank adaptation (Hu et al. 2022): chosen projections get an adapter, which is all that is
// trained.
struct LoraConfig {
  int64_t rank = 0;                           // 0: none, and all weights are trained
  double alpha = 0;                           // adapters' output is scaled by alpha / rank
  std::vector<std::string> projections = {};  // of lora_projections()
  // Whether the parameter of this name, e.g. "self_attn.q_proj", gets an adapter.
  bool adapts(std::string_view name) const;
};
std::span<const std::string_view> lora_projections();

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
  // A letter for each layer, repeated and cut to `layers`: N attends with softmax, L linearly.
  // Empty: N.
  std::string pattern = {};
  LinearConfig linear = {};
  NormKind norm = NormKind::kRms;
  kernels::Activation mlp_gate = kernels::Activation::kSilu;  // the identity: SGLU
  bool scale_embeddings = false;                              // by sqrt(width)
  // 0: x + f(norm(x)). Else norm(x) * residual_scale + f(norm(x)), the scaled residuals of DeepNorm
  // (Wang et al. 2022) as MiniMax-01 has them, with (2 layers)^(1/4).
  double residual_scale = 0;
  LoraConfig lora = {};

  bool trains_weights() const { return lora.rank == 0; }
  bool is_linear(int64_t layer) const;
  int64_t linear_layers() const;
  int64_t softmax_layers() const { return layers - linear_layers(); }
  int64_t linear_heads() const { return linear.heads > 0 ? linear.heads : heads; }
  int64_t linear_head_dim() const { return linear.head_dim > 0 ? linear.head_dim : head_dim; }
  bool has_lrpe(int64_t layer) const;
  // Of a linear layer: of queries and keys as attention sees them.
  int64_t linear_key_dim(int64_t layer) const {
    return linear_head_dim() * (has_lrpe(layer) ? 2 : 1);
  }

  parallel::HeadShape head_shape() const { return {heads, kv_heads, head_dim, head_dim}; }

  // Number of parameters, of the adapters' among them, and of all that are trained.
  int64_t parameters() const;
  int64_t adapter_parameters() const;
  int64_t trained_parameters() const {
    return trains_weights() ? parameters() : adapter_parameters();
  }
  // Throws Error(kConfig) for sizes that cannot be, naming the field, its value and the fix.
  void validate() const;
  // Field -> value, as compared between a checkpoint and a configuration. What not every model has
  // is named where it is in use, so that checkpoints from before it was known still fit.
  // Dropout may change from run to run.
  std::map<std::string, std::string> describe(DType dtype) const;
};

}  // namespace longhaul::model
