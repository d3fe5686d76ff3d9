// What a step takes, counted by hand.
#include "launch/train/flops.h"

#include <gtest/gtest.h>

#include "launch/config/config.h"
#include "model/config.h"

namespace longhaul::launch {
namespace {

TEST(Flops, CountEveryProductOnce) {
  const model::ModelConfig config = model_config([] {
    Config c = parse_config(
        R"(model { vocabulary: 16 layers: 2 width: 32 heads: 4 kv_heads: 2 head_dim: 8 mlp_width: 48
                   norm_eps: 1e-5 rope_theta: 10000 tied_embeddings: true }
           data { path: "none" sequence_length: 8 } train { steps: 1 })",
        "test");
    resolve(c, 1, 1);
    return c;
  }());
  // Projections 32x32 and 32x16 and back, MLP 3 x 32 x 48, output 16 x 32.
  EXPECT_EQ(product_weights(config), 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 16 * 32);
  EXPECT_EQ(training_flops(config, 10, 100),
            6.0 * 10 * static_cast<double>(product_weights(config)) + 12.0 * 8 * 2 * 100);
}

// Every token is written to the state of each head and read from it: two multiply-adds for each
// element, forward; backward counts twice that.
TEST(Flops, CountTheStatesOfLinearLayers) {
  model::ModelConfig config{.layers = 3,
                            .width = 8,
                            .heads = 2,
                            .kv_heads = 1,
                            .head_dim = 4,
                            .mlp_width = 16,
                            .pattern = "NLL"};
  config.linear.lrpe_layers = {2};
  const int64_t mlp = 3 * 8 * 16, softmax = 8 * 4 * (2 + 1 + 1 + 2), linear = 5 * 8 * 8;
  EXPECT_EQ(product_weights(config), softmax + 2 * linear + 3 * mlp + 256 * 8);
  EXPECT_EQ(state_products(config), 2 * 2 * 4 * 4 + 2 * 2 * 8 * 4);
  const double weights = 6.0 * static_cast<double>(product_weights(config));
  EXPECT_EQ(training_flops(config, 10, 100),
            10 * (weights + 6.0 * (64 + 128)) + 12.0 * 4 * 1 * 100);
}

}  // namespace
}  // namespace longhaul::launch
