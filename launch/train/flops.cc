#include "launch/train/flops.h"

#include "model/linear_gates.h"

namespace longhaul::launch {

int64_t product_weights(const model::ModelConfig& c) {
  const int64_t softmax = c.width * c.head_dim * (2 * c.heads + 2 * c.kv_heads);
  const int64_t linear =
      c.width * c.linear_heads() * c.linear_head_dim() * (c.linear.gate ? 5 : 4) +
      gate_weights(c).products;
  const int64_t mlp = 3 * c.width * c.mlp_width;
  return c.softmax_layers() * softmax + c.linear_layers() * linear + c.layers * mlp +
         c.vocabulary * c.width;
}

int64_t state_products(const model::ModelConfig& c) {
  // The delta rule also reads what it overwrites.
  const bool reads_twice = c.linear.kind == model::LinearVariant::kGatedDelta;
  int64_t sum = 0;
  for (int64_t layer = 0; layer < c.layers; ++layer) {
    if (c.is_linear(layer)) {
      sum +=
          (reads_twice ? 3 : 2) * c.linear_heads() * c.linear_key_dim(layer) * c.linear_head_dim();
    }
  }
  return sum;
}

double training_flops(const model::ModelConfig& config, int64_t tokens, int64_t attention_pairs) {
  const double of_weights = config.trains_weights() ? 6.0 : 4.0;
  const double per_token = of_weights * static_cast<double>(product_weights(config)) +
                           6.0 * static_cast<double>(config.adapter_parameters()) +
                           6.0 * static_cast<double>(state_products(config));
  return per_token * static_cast<double>(tokens) +
         12.0 * static_cast<double>(config.head_dim) *
             static_cast<double>(config.softmax_layers()) * static_cast<double>(attention_pairs);
}

}  // namespace longhaul::launch
