#include "launch/train/flops.h"

namespace longhaul::launch {

int64_t product_weights(const model::ModelConfig& c) {
  const int64_t attention = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads);
  const int64_t mlp = 3 * c.width * c.mlp_width;
  return c.layers * (attention + mlp) + c.vocabulary * c.width;
}

double training_flops(const model::ModelConfig& config, int64_t tokens, int64_t attention_pairs) {
  return 6.0 * static_cast<double>(product_weights(config)) * static_cast<double>(tokens) +
         12.0 * static_cast<double>(config.head_dim) * static_cast<double>(config.layers) *
             static_cast<double>(attention_pairs);
}

}  // namespace longhaul::launch
