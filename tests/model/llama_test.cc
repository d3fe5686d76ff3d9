// The model on one rank: its loss against a naive forward pass, its gradients against finite
// differences, and what the activation policies keep.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "model/attention_options.h"
#include "model/model.h"
#include "model/presets.h"
#include "tests/model/initial_values.h"
#include "tests/model/model_run.h"

namespace longhaul::test {
namespace {

ModelCase base_case(bool tied) {
  ModelCase c{.config = small_model(),
              .options = {.dtype = DType::kF64},
              .layout = "contiguous",
              .documents = parallel::Documents(37, {0, 7, 20})};
  c.config.tied_embeddings = tied;
  return c;
}

TEST(Llama, LossEqualsNaiveForward) {
  for (bool tied : {true, false}) {
    const ModelCase c = base_case(tied);
    const double expected = naive_loss(c);
    EXPECT_NEAR(run_on_one_rank(c).loss, expected, 1e-12 * expected);
  }
}

TEST(Llama, LossEqualsNaiveForwardWithEveryOptionOfAttention) {
  for (const bool alibi : {false, true}) {
    for (int64_t heads : {4, 6}) {  // with ALiBi, no power of two interleaves slopes
      ModelCase c = base_case(true);
      c.config = model_with_attention_options(alibi);
      c.config.heads = heads;
      c.config.attention.dropout = 0;
      // Sinks start at 0: move one.
      c.moved_parameter = "model.layers.1.self_attn.sinks";
      c.moved_element = 1;
      c.moved_by = 1.5;
      const double expected = naive_loss(c);
      EXPECT_NEAR(run_on_one_rank(c).loss, expected, 1e-12 * expected) << alibi << " " << heads;
      // The options matter.
      c.config.attention = {.sinks = true};
      EXPECT_GT(std::abs(naive_loss(c) - expected), 1e-4);
    }
  }
}

// Biases as of Qwen2, norms as of Qwen3. They start at 0 and 1: move some.
TEST(Llama, LossEqualsNaiveForwardWithBiasesAndNormsOfHeads) {
  for (const char* moved :
       {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias",
        "self_attn.o_proj.bias", "self_attn.q_norm.weight", "self_attn.k_norm.weight"}) {
    SCOPED_TRACE(moved);
    ModelCase c = base_case(true);
    const double plain = naive_loss(c);
    c.config.attention = {.qkv_bias = true, .output_bias = true, .qk_norm = true};
    c.moved_parameter = absl::StrCat("model.layers.1.", moved);
    c.moved_element = 1;
    c.moved_by = 0.7;
    const double expected = naive_loss(c);
    EXPECT_NEAR(run_on_one_rank(c).loss, expected, 1e-12 * expected);
    EXPECT_GT(std::abs(expected - plain), 1e-5);
    ModelCase unmoved = c;
    unmoved.moved_by = 0;
    EXPECT_GT(std::abs(expected - naive_loss(unmoved)), 1e-6);
  }
}

// The sequences that the paper's section 3 gives for 8 and 16 heads, and its code for 12.
TEST(Llama, SlopesOfAlibi) {
  const auto eight = model::alibi_slopes(8), sixteen = model::alibi_slopes(16),
             twelve = model::alibi_slopes(12);
  ASSERT_EQ(eight.size(), 8u);
  ASSERT_EQ(sixteen.size(), 16u);
  ASSERT_EQ(twelve.size(), 12u);
  for (size_t i = 0; i < 8; ++i) {
    EXPECT_FLOAT_EQ(eight[i], std::ldexp(1.0F, -static_cast<int>(i) - 1));
    EXPECT_FLOAT_EQ(twelve[i], eight[i]);
  }
  EXPECT_FLOAT_EQ(sixteen[0], std::sqrt(0.5F));
  EXPECT_FLOAT_EQ(sixteen[15], 1.0F / 256);
  for (size_t i = 0; i < 4; ++i) EXPECT_FLOAT_EQ(twelve[8 + i], sixteen[2 * i]);
  EXPECT_EQ(model::alibi_slopes(1), std::vector<float>{1.0F / 256});
}

TEST(Llama, DropoutKeysDiffer) {
  std::set<std::pair<uint64_t, uint64_t>> keys;
  for (uint64_t seed : {1, 2}) {
    for (int64_t sample : {0, 1, 1 << 20}) {
      for (int64_t layer : {0, 1, 2}) {
        const RandomKey key = model::dropout_key_of_layer(model::dropout_key(seed, sample), layer);
        keys.insert({key.seed, key.stream});
      }
    }
  }
  EXPECT_EQ(keys.size(), 18u);
}

TEST(Llama, GradientsEqualFiniteDifferences) {
  std::vector<ModelCase> cases{base_case(true), base_case(false), base_case(true), base_case(true)};
  cases[2].config = model_with_attention_options(false);
  cases[3].config = model_with_attention_options(true);
  cases.push_back(base_case(false));
  cases[4].config.attention = {.qkv_bias = true, .output_bias = true, .qk_norm = true};
  cases[4].config.rope.scaling = {.kind = kernels::RopeScalingKind::kYarn,
                                  .factor = 4,
                                  .original_length = 16,
                                  .beta_fast = 2,
                                  .beta_slow = 0.5};
  for (const ModelCase& c : cases) {
    const ModelRun run = run_on_one_rank(c);
    EXPECT_EQ(run.gradients.count("model.layers.0.self_attn.sinks"),
              c.config.attention.sinks ? 1u : 0u);
    for (const auto& [name, gradient] : run.gradients) {
      // A few elements of every parameter. Central differences D(h) are off by O(h^2), which
      // matters where norms bend. (4 D(h / 2) - D(h)) / 3 is off by O(h^4) and rounding / h, about
      // 1e-10.
      constexpr double kStep = 1e-5;
      for (size_t i = 0; i < gradient.size(); i += 1 + gradient.size() / 3) {
        ModelCase moved = c;
        moved.moved_parameter = name;
        moved.moved_element = static_cast<int64_t>(i);
        const auto difference = [&](double step) {
          moved.moved_by = step;
          const double up = run_on_one_rank(moved).loss;
          moved.moved_by = -step;
          return (up - run_on_one_rank(moved).loss) / (2 * step);
        };
        EXPECT_NEAR(gradient[i], (4 * difference(kStep / 2) - difference(kStep)) / 3, 1e-8)
            << name << " " << i;
      }
    }
  }
}

TEST(Llama, RecomputationGivesTheSameBitsFromLessMemoryAndNoSecondAttention) {
  ModelCase c = base_case(true);
  c.config = model_with_attention_options(false);
  const ModelRun keep = run_on_one_rank(c);
  c.options.activations = model::ActivationPolicy::kRecompute;
  const ModelRun recompute = run_on_one_rank(c);
  EXPECT_EQ(keep.loss, recompute.loss);
  EXPECT_EQ(keep.gradients, recompute.gradients);
  EXPECT_LT(recompute.activation_bytes, keep.activation_bytes / 2);
  EXPECT_EQ(keep.attention_forwards, c.config.layers);
  EXPECT_EQ(recompute.attention_forwards, c.config.layers);
}

TEST(Llama, LossTilesDoNotChangeTheResult) {
  ModelCase c = base_case(false);
  const ModelRun whole = run_on_one_rank(c);
  c.options.loss_tile_rows = 5;
  const ModelRun tiled = run_on_one_rank(c);
  EXPECT_NEAR(tiled.loss, whole.loss, 1e-13);
  EXPECT_LE(largest_deviation(whole, tiled), 1e-12);
}

TEST(Llama, InitialisationDependsOnSeedAndNameAlone) {
  const ModelCase c = base_case(false);
  const auto values = initial_values(c);
  EXPECT_EQ(values, initial_values(c));
  EXPECT_NE(values.at("model.layers.0.mlp.gate_proj.weight"),
            values.at("model.layers.0.mlp.up_proj.weight"));
  EXPECT_NE(values.at("model.layers.0.mlp.up_proj.weight"),
            values.at("model.layers.1.mlp.up_proj.weight"));
}

TEST(Presets, HaveTheSizesOfTheirNames) {
  for (const model::Preset& preset : model::presets()) preset.config.validate();
  EXPECT_EQ(model::preset("llama3-8b").config.parameters(), 8'030'261'248);
  EXPECT_EQ(model::preset("llama3.2-1b").config.parameters(), 1'235'814'400);
  EXPECT_EQ(model::preset("llama3.2-3b").config.parameters(), 3'212'749'824);
  EXPECT_THROW(model::preset("llama3-9b"), Error);
}

TEST(ModelConfig, CountsTheParametersThatTheModelDeclares) {
  for (bool tied : {true, false}) {
    ModelCase c = base_case(tied);
    c.config.attention.sinks = tied;
    c.config.attention.qkv_bias = c.config.attention.output_bias = c.config.attention.qk_norm =
        tied;
    int64_t declared = 0;
    for (const auto& [name, values] : initial_values(c)) {
      declared += static_cast<int64_t>(values.size());
    }
    EXPECT_EQ(declared, c.config.parameters());
  }
}

// A checkpoint of a model without options of attention says nothing of them: it is compared with
// what versions wrote that did not know them.
TEST(ModelConfig, DescribesOptionsOfAttentionThatAreInUse) {
  const auto plain = small_model().describe(DType::kF32);
  for (const auto& [field, value] : plain) EXPECT_EQ(field.find("attention"), std::string::npos);
  const auto options = model_with_attention_options(false).describe(DType::kF32);
  EXPECT_EQ(options.at("model.attention.sliding_window"), "9");
  EXPECT_EQ(options.at("model.attention.prefix_length"), "4");
  EXPECT_EQ(options.at("model.attention.sinks"), "true");
  EXPECT_EQ(options.count("model.attention.dropout"), 0u) << "may change from run to run";
  EXPECT_EQ(model_with_attention_options(true).describe(DType::kF32).at("model.rope_theta"),
            "none");
}

TEST(ModelConfig, RefusesImpossibleSizes) {
  const auto message = [](auto change) -> std::string {
    model::ModelConfig config = small_model();
    change(config);
    try {
      config.validate();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kConfig);
      return error.what();
    }
    return "";
  };
  using model::ModelConfig;
  EXPECT_EQ(message([](ModelConfig&) {}), "");
  EXPECT_NE(message([](ModelConfig& c) { c.kv_heads = 3; }).find("kv_heads is 3"),
            std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.head_dim = 7; }).find("head_dim is 7"),
            std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.layers = 0; }).find("layers is 0"), std::string::npos);
  EXPECT_NE(message([](ModelConfig& c) { c.norm_eps = 0; }).find("norm_eps"), std::string::npos);
  EXPECT_EQ(message([](ModelConfig& c) {
              c.attention.alibi = true;
              c.head_dim = 7;  // nothing is turned in pairs
            }),
            "");
  EXPECT_NE(message([](ModelConfig& c) {
              c.attention = {.prefix_length = 3, .alibi = true};
            }).find("prefix_length is 3"),
            std::string::npos);
}

}  // namespace
}  // namespace longhaul::test
