#include <google/protobuf/text_format.h>

#include "absl/strings/str_split.h"
#include "launch/config/config.h"
#include "launch/config/linear.h"

namespace longhaul::launch {

std::string to_text(const Config& config) {
  std::string text;
  LONGHAUL_CHECK(google::protobuf::TextFormat::PrintToString(config, &text));
  return text;
}

// resolve() has checked that there is one of this name.
static kernels::RopeScalingKind kind_of(const std::string& name) {
  for (const auto& row : kernels::rope_scaling_kinds()) {
    if (row.name == name) return row.value;
  }
  check_failed(__FILE__, __LINE__, "a kind of rope_scaling", name);
}

model::ModelConfig model_config(const Config& config) {
  const Model& from = config.model();
  model::ModelConfig to;
  to.architecture = from.architecture();
  to.vocabulary = from.vocabulary();
  to.layers = from.layers();
  to.width = from.width();
  to.heads = from.heads();
  to.kv_heads = from.kv_heads();
  to.head_dim = from.head_dim();
  to.mlp_width = from.mlp_width();
  to.norm_eps = from.norm_eps();
  to.rope.theta = from.rope_theta();
  if (from.has_rope_scaling()) {
    const RopeScaling& scaling = from.rope_scaling();
    to.rope.scaling = kernels::RopeScaling{.kind = kind_of(scaling.kind()),
                                           .factor = scaling.factor(),
                                           .low_frequency_factor = scaling.low_frequency_factor(),
                                           .high_frequency_factor = scaling.high_frequency_factor(),
                                           .original_length = scaling.original_length(),
                                           .beta_fast = scaling.beta_fast(),
                                           .beta_slow = scaling.beta_slow(),
                                           .truncate = scaling.truncate(),
                                           .attention_factor = scaling.attention_factor(),
                                           .mscale = scaling.mscale(),
                                           .mscale_all_dim = scaling.mscale_all_dim()};
    to.rope.length = config.data().sequence_length();
  }
  to.tied_embeddings = from.tied_embeddings();
  const Attention& attention = from.attention();
  to.attention = {.sliding_window = attention.sliding_window(),
                  .prefix_length = attention.prefix_length(),
                  .soft_cap = attention.soft_cap(),
                  .alibi = attention.alibi(),
                  .sinks = attention.sinks(),
                  .qkv_bias = attention.qkv_bias(),
                  .output_bias = attention.output_bias(),
                  .qk_norm = attention.qk_norm(),
                  .dropout = attention.dropout()};
  linear_config(from, to);
  if (config.has_lora()) {
    const Lora& lora = config.lora();
    to.lora = {.rank = lora.rank(),
               .alpha = lora.alpha(),
               .projections = absl::StrSplit(lora.projections(), ',', absl::SkipWhitespace())};
  }
  return to;
}

DType dtype(const Config& config) {
  switch (config.train().dtype()) {
    case Train::F32:
      return DType::kF32;
    case Train::BF16:
      return DType::kBF16;
    case Train::F64:
      return DType::kF64;
  }
  check_failed(__FILE__, __LINE__, "every dtype of config.proto is listed");
}

}  // namespace longhaul::launch
