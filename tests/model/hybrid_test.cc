// Models with linear attention on one rank: loss against a naive forward pass, gradients against
// finite differences, what is kept and what is made again, formulas of slopes and presets.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>

#include "model/model.h"
#include "model/presets.h"
#include "tests/model/hybrid_cases.h"
#include "tests/model/initial_values.h"
#include "tests/model/model_run.h"
#include "tests/model/naive_llama.h"
#include "tests/slow_build.h"

namespace longhaul::test {
namespace {

using model::LinearConfig;
using model::LinearVariant;
using model::ModelConfig;
using model::Slopes;

ModelCase case_of(const ModelConfig& config) {
  return {.config = config,
          .options = {.dtype = DType::kF64},
          .layout = "contiguous",
          // Longer than a block of the kernels, and a document of one token.
          .documents = parallel::Documents(75, {0, 6, 7})};
}

TEST(Hybrid, LossEqualsNaiveForward) {
  for (const HybridCase& hybrid : hybrid_cases()) {
    const ModelCase c = case_of(hybrid.config);
    const double expected = naive_loss(c);
    EXPECT_NEAR(run_on_one_rank(c).loss, expected, 1e-12 * expected) << hybrid.name;
  }
}

TEST(Hybrid, GradientsEqualFiniteDifferences) {
  for (const HybridCase& hybrid : hybrid_cases()) {
    ModelCase c = case_of(hybrid.config);
    c.documents = parallel::Documents(21, {0, 6, 7});
    const ModelRun run = run_on_one_rank(c);
    for (const auto& [name, gradient] : run.gradients) {
      // Central differences D(h) are off by O(h^2), which matters here: norms of outputs bend where
      // those are small. (4 D(h / 2) - D(h)) / 3 is off by O(h^4) and rounding / h, about 1e-10.
      constexpr double kStep = 1e-5;
      const size_t elements = slow_build() ? 1 : 3;
      for (size_t i = 0; i < gradient.size(); i += 1 + gradient.size() / elements) {
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
            << hybrid.name << ": " << name << " " << i;
      }
    }
  }
}

TEST(Hybrid, RecomputationGivesTheSameBitsFromLessMemoryAndNoSecondAttention) {
  for (const HybridCase& hybrid : hybrid_cases()) {
    ModelCase c = case_of(hybrid.config);
    const ModelRun keep = run_on_one_rank(c);
    c.options.activations = model::ActivationPolicy::kRecompute;
    const ModelRun recompute = run_on_one_rank(c);
    EXPECT_EQ(keep.loss, recompute.loss) << hybrid.name;
    EXPECT_EQ(keep.gradients, recompute.gradients) << hybrid.name;
    EXPECT_LT(recompute.activation_bytes, keep.activation_bytes) << hybrid.name;
    for (const ModelRun& run : {keep, recompute}) {
      EXPECT_EQ(run.linear_forwards, c.config.linear_layers()) << hybrid.name;
      EXPECT_EQ(run.attention_forwards, c.config.softmax_layers()) << hybrid.name;
    }
  }
}

TEST(Hybrid, CountsTheParametersThatItDeclares) {
  for (const HybridCase& hybrid : hybrid_cases()) {
    int64_t declared = 0;
    for (const auto& [name, values] : initial_values(case_of(hybrid.config))) {
      declared += static_cast<int64_t>(values.size());
    }
    EXPECT_EQ(declared, hybrid.config.parameters()) << hybrid.name;
  }
}

// What each choice of a configuration changes must matter: a test of one choice cannot pass by
// ignoring it.
TEST(Hybrid, EveryChoiceMatters) {
  const HybridCase base{"", hybrid_cases().front().config};
  const double loss = run_on_one_rank(case_of(base.config)).loss;
  const auto differs = [&](auto change) {
    ModelConfig config = base.config;
    change(config);
    const double other = run_on_one_rank(case_of(config)).loss;
    return std::abs(other - loss) > 1e-7;
  };
  using kernels::Activation;
  EXPECT_FALSE(differs([](ModelConfig&) {}));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.pattern = "LN"; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.linear.kind = LinearVariant::kRetention; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.linear.kind = LinearVariant::kGla; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.linear.kind = LinearVariant::kGatedDelta; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.linear.slopes = Slopes::kTransNormer; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.linear.feature = Activation::kIdentity; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.linear.value_feature = Activation::kSilu; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.linear.gate = Activation::kSigmoid; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.linear.norm = model::OutputNorm::kAllHeads; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.linear.lrpe_layers = {1}; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.mlp_gate = Activation::kIdentity; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.scale_embeddings = true; }));
  EXPECT_TRUE(differs([](ModelConfig& c) { c.residual_scale = 2; }));
}

// Published sequences: ALiBi's paper, section 3, for 8 heads; RetNet's gammas, section 3.1; the
// factors of TransNormerLLM's code and of its paper's section 3.1.
TEST(Slopes, ArePublished) {
  LinearConfig linear;
  const auto eight = linear_slopes(linear, 8, 3, 5);
  ASSERT_EQ(eight.size(), 8u);
  for (size_t h = 0; h < 8; ++h)
    EXPECT_DOUBLE_EQ(eight[h], std::ldexp(1.0, -1 - static_cast<int>(h)));
  const auto twelve = linear_slopes(linear, 12, 0, 5);
  ASSERT_EQ(twelve.size(), 12u);
  const double odd[] = {std::sqrt(0.5), std::sqrt(0.125), std::sqrt(1.0 / 32),
                        std::sqrt(1.0 / 128)};
  for (size_t h = 0; h < 4; ++h) EXPECT_NEAR(twelve[8 + h], odd[h], 1e-15);

  linear.slopes = Slopes::kTransNormer;
  for (int64_t layer = 0; layer < 5; ++layer) {
    const auto slopes = linear_slopes(linear, 8, layer, 5);
    const double factor[] = {1.00001, 0.75001, 0.50001, 0.25001, 0.00001};
    for (size_t h = 0; h < 8; ++h) EXPECT_NEAR(slopes[h], eight[h] * factor[layer], 1e-15);
  }
  EXPECT_NEAR(linear_slopes(linear, 8, 0, 1)[0], 0.5 * 1.00001, 1e-15) << "a single layer";

  linear.slopes = Slopes::kTransNormerPaper;
  const auto paper = linear_slopes(linear, 4, 1, 4);
  const double expected[] = {0, 1.5, 3, 4.5};
  for (size_t h = 0; h < 4; ++h) EXPECT_DOUBLE_EQ(paper[h], expected[h]);

  linear.kind = LinearVariant::kRetention;
  const auto retention = linear_slopes(linear, 3, 0, 4);
  const double gamma[] = {0.96875, 0.984375, 0.9921875};
  for (size_t h = 0; h < 3; ++h) EXPECT_NEAR(std::exp(-retention[h]), gamma[h], 1e-15);

  linear.kind = LinearVariant::kBasic;
  EXPECT_EQ(linear_slopes(linear, 3, 0, 4), std::vector<double>(3, 0.0));
}

TEST(Pattern, IsRepeatedAndCut) {
  ModelConfig config = small_model();
  const auto layers = [&](const char* pattern) {
    config.layers = 6;
    config.pattern = pattern;
    std::string kinds;
    for (int64_t l = 0; l < config.layers; ++l) kinds += config.is_linear(l) ? 'L' : 'N';
    EXPECT_EQ(config.linear_layers(), std::ranges::count(kinds, 'L'));
    EXPECT_EQ(config.softmax_layers(), std::ranges::count(kinds, 'N'));
    return kinds;
  };
  EXPECT_EQ(layers(""), "NNNNNN");
  EXPECT_EQ(layers("N"), "NNNNNN");
  EXPECT_EQ(layers("L"), "LLLLLL");
  EXPECT_EQ(layers("LN"), "LNLNLN");
  EXPECT_EQ(layers("LLLN"), "LLLNLL");
  EXPECT_EQ(layers("LLLLLLLN"), "LLLLLL");
}

// LASP-2, section 4.1: 16 layers of width 2048 with 16 heads. Sizes of the MLP and of embeddings
// are those of the public code's script, of which 1.14 billion parameters are not embeddings.
TEST(Presets, LinearLlama3) {
  const ModelConfig& config = model::preset("linear-llama3-1b").config;
  EXPECT_EQ(config.layers, 16);
  EXPECT_EQ(config.width, 2048);
  EXPECT_EQ(config.heads, 16);
  EXPECT_EQ(config.linear_layers(), 16);
  EXPECT_EQ(config.linear_heads() * config.linear_head_dim(), 2048);
  const int64_t layer = 5 * 2048 * 2048 + 128 + 3 * 2048 * 8192 + 2 * 2048;
  EXPECT_EQ(config.parameters(), 2 * 128256 * 2048 + 16 * layer + 2048);
  EXPECT_EQ(config.linear.gate, kernels::Activation::kSilu);
  EXPECT_EQ(config.linear.norm, model::OutputNorm::kPerHead);
  // The published ratios of softmax layers.
  ModelConfig hybrid = config;
  for (const auto& [pattern, softmax] : {std::pair("LLLLLLLN", 2), {"LLLN", 4}, {"LN", 8}}) {
    hybrid.pattern = pattern;
    EXPECT_EQ(hybrid.softmax_layers(), softmax) << pattern;
    hybrid.validate();
  }
}

TEST(Presets, TransNormerLLM) {
  const ModelConfig& config = model::preset("transnormerllm-385m").config;
  EXPECT_EQ(config.softmax_layers(), 0);
  EXPECT_EQ(config.linear_head_dim(), 128);
  EXPECT_TRUE(config.has_lrpe(0));
  EXPECT_FALSE(config.has_lrpe(1));
  EXPECT_EQ(config.linear_key_dim(0), 256);
  // No norm has a weight.
  EXPECT_EQ(config.parameters(), 64000 * 1024 + 24 * (5 * 1024 * 1024 + 3 * 1024 * 2816));
  // The last layer hardly forgets, the first one as ALiBi has it.
  const auto first = linear_slopes(config.linear, 8, 0, 24),
             last = linear_slopes(config.linear, 8, 23, 24);
  EXPECT_NEAR(first[0], 0.5, 1e-5);
  EXPECT_NEAR(last[0], 0.5e-5, 1e-15);
}

TEST(Presets, MiniMax) {
  const ModelConfig& config = model::preset("minimax-01-small").config;
  EXPECT_EQ(config.linear_layers(), 7 * config.softmax_layers());
  EXPECT_FALSE(config.is_linear(7));
  // Published for 80 layers: 3.5565588200778455.
  EXPECT_NEAR(std::pow(2.0 * 80, 0.25), 3.5565588200778455, 1e-12);
  EXPECT_NEAR(config.residual_scale, std::pow(2.0 * static_cast<double>(config.layers), 0.25),
              1e-12);
}

TEST(Presets, WithLinearAttentionRun) {
  for (const char* name : {"transnormerllm-small", "minimax-01-small"}) {
    ModelConfig config = model::preset(name).config;
    // Fewer of everything, so that it takes no time.
    config.vocabulary = 19;
    config.width = config.mlp_width = 16;
    config.head_dim = 4;
    const ModelCase c = case_of(config);
    const double expected = naive_loss(c);
    EXPECT_NEAR(run_on_one_rank(c).loss, expected, 1e-11 * expected) << name;
  }
}

// A checkpoint of a model without linear layers says nothing of them.
TEST(ModelConfig, DescribesLinearLayersThatItHas) {
  for (const auto& [field, value] : small_model().describe(DType::kF32)) {
    for (const char* word : {"linear", "pattern", "residual", "mlp_gate", "scale_emb"}) {
      EXPECT_EQ(field.find(word), std::string::npos) << field;
    }
  }
  ModelConfig config = small_model();
  config.pattern = "N";
  EXPECT_EQ(config.describe(DType::kF32), small_model().describe(DType::kF32));
  config.pattern = "LLLN";  // cut to two layers
  const auto fields = config.describe(DType::kF32);
  EXPECT_EQ(fields.at("model.pattern"), "LL");
  EXPECT_EQ(fields.at("model.linear.kind"), "lightning");
  EXPECT_EQ(fields.at("model.linear.heads"), "4");
  EXPECT_EQ(fields.at("model.rope_theta"), "none");
  EXPECT_EQ(fields.count("model.linear.lrpe_layers"), 0u);
  config.linear = {.kind = LinearVariant::kRetention, .gate = std::nullopt, .lrpe_layers = {0, 1}};
  const auto other = config.describe(DType::kF32);
  EXPECT_EQ(other.count("model.linear.slopes"), 0u);
  EXPECT_EQ(other.at("model.linear.gate"), "none");
  EXPECT_EQ(other.at("model.linear.lrpe_layers"), "0,1");
}

}  // namespace
}  // namespace longhaul::test
