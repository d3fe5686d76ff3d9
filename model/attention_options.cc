#include "model/attention_options.h"

#include <bit>
#include <cmath>

namespace longhaul::model {

namespace {

// 128 random bits as a key of its own.
RandomKey derived(RandomKey key, int64_t index) {
  const auto words = random_bits(key, static_cast<uint64_t>(index));
  return {.seed = (uint64_t{words[1]} << 32) | words[0],
          .stream = (uint64_t{words[3]} << 32) | words[2]};
}

}  // namespace

std::vector<float> alibi_slopes(int64_t heads) {
  const auto below = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(heads)));
  std::vector<float> slopes;
  const auto add = [&](int64_t index, int64_t of) {
    slopes.push_back(
        static_cast<float>(std::exp2(-8.0 * static_cast<double>(index) / static_cast<double>(of))));
  };
  for (int64_t i = 1; i <= below; ++i) add(i, below);
  for (int64_t i = 1; static_cast<int64_t>(slopes.size()) < heads; i += 2) add(i, 2 * below);
  return slopes;
}

parallel::CoreAttentionOptions attention_options(const ModelConfig& config, DType dtype) {
  const AttentionConfig& attention = config.attention;
  return {.heads = config.head_shape(),
          .mask = {.causal = true,
                   .window = attention.sliding_window,
                   .prefix = attention.prefix_length},
          .dtype = dtype,
          .scale = 1.0 / std::sqrt(static_cast<double>(config.head_dim)),
          .soft_cap = attention.soft_cap,
          .bias_slopes = attention.alibi ? alibi_slopes(config.heads) : std::vector<float>(),
          .dropout = attention.dropout};
}

RandomKey dropout_key(uint64_t seed, int64_t sample) {
  return derived({.seed = seed, .stream = stream_of("attention dropout")}, sample);
}

RandomKey dropout_key_of_layer(RandomKey of_sample, int64_t layer) {
  return derived(of_sample, layer);
}

}  // namespace longhaul::model
