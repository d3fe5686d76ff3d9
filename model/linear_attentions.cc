#include "model/linear_attentions.h"

namespace longhaul::model {

namespace {

parallel::LinearKind kind_of(LinearVariant variant) {
  switch (variant) {
    case LinearVariant::kLightning:
    case LinearVariant::kRetention:
    case LinearVariant::kBasic:
      return parallel::LinearKind::kDecay;
    case LinearVariant::kGla:
      return parallel::LinearKind::kGated;
    case LinearVariant::kGatedDelta:
      return parallel::LinearKind::kDeltaRule;
  }
  check_failed(__FILE__, __LINE__, "every variant is listed");
}

}  // namespace

parallel::LinearAttentionOptions linear_attention_options(const ModelConfig& config, DType dtype,
                                                          int64_t key_dim) {
  return {.kind = kind_of(config.linear.kind),
          .heads = config.linear_heads(),
          .head_dim = key_dim,
          .value_dim = config.linear_head_dim(),
          .dtype = dtype,
          .causal = true};
}

LinearAttentions::LinearAttentions(dist::Group& group, const parallel::TokenLayout& layout,
                                   const ModelConfig& config, const Options& options) {
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    if (!config.is_linear(layer)) continue;
    const int64_t key_dim = config.linear_key_dim(layer);
    if (by_key_dim_.contains(key_dim)) continue;
    parallel::LinearAttentionOptions attention =
        linear_attention_options(config, options.dtype, key_dim);
    attention.method = options.method;
    attention.most_runs = options.most_runs;
    attention.decay_bound = options.decay_bound;
    by_key_dim_.emplace(key_dim,
                        std::make_unique<parallel::LinearAttention>(group, layout, attention));
  }
}

parallel::LinearAttention& LinearAttentions::of(int64_t key_dim) {
  const auto found = by_key_dim_.find(key_dim);
  LONGHAUL_CHECK(found != by_key_dim_.end(), "made for another model");
  return *found->second;
}

void LinearAttentions::prepare(const parallel::Documents& documents,
                               const parallel::TokenLayout& of_sample) {
  for (const auto& [key_dim, attention] : by_key_dim_) attention->prepare(documents, of_sample);
}

int64_t LinearAttentions::forward_count() const {
  int64_t count = 0;
  for (const auto& [key_dim, attention] : by_key_dim_) count += attention->forward_count();
  return count;
}

}  // namespace longhaul::model
