// A model with adapters against one whose weights have the adapters added to them: the same loss,
// and gradients by the chain rule from W' = W + s B A:  dA = s B^T dW',  dB = s dW' A^T.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "kernels/core/random.h"
#include "tests/model/initial_values.h"
#include "tests/model/model_run.h"

namespace longhaul::test {
namespace {

using Values = std::vector<double>;

// [m, k] times [k, n].
Values product(const Values& a, const Values& b, size_t m, size_t k, size_t n) {
  Values c(m * n);
  for (size_t i = 0; i < m; ++i) {
    for (size_t l = 0; l < k; ++l) {
      for (size_t j = 0; j < n; ++j) c[i * n + j] += a[i * k + l] * b[l * n + j];
    }
  }
  return c;
}
Values transposed(const Values& a, size_t rows, size_t columns) {
  Values t(a.size());
  for (size_t i = 0; i < rows; ++i) {
    for (size_t j = 0; j < columns; ++j) t[j * rows + i] = a[i * columns + j];
  }
  return t;
}

struct Pair {
  ModelCase adapted, merged;
};
constexpr size_t kRank = 3;
constexpr double kAlpha = 5;
constexpr double kScale = kAlpha / kRank;

// Adapters with random B, and the model that they make.
Pair make_pair(const ModelCase& c) {
  Pair pair{c, c};
  pair.adapted.config.lora = {
      .rank = kRank,
      .alpha = kAlpha,
      .projections = {model::lora_projections().begin(), model::lora_projections().end()}};
  const auto initial = initial_values(pair.adapted);
  for (const auto& [name, values] : initial) {
    if (!absl::StrContains(name, ".lora_B.")) continue;
    Values& b = pair.adapted.values[name];
    for (size_t i = 0; i < values.size(); ++i) {
      b.push_back(0.1 * random_normal({.seed = 9, .stream = stream_of(name)}, i));
    }
    const std::string projection = name.substr(0, name.find(".lora_B."));
    const Values& a = initial.at(projection + ".lora_A.weight");
    const Values delta = product(b, a, b.size() / kRank, kRank, a.size() / kRank);
    Values& weight = pair.merged.values[projection + ".weight"];
    weight = initial.at(projection + ".weight");
    for (size_t i = 0; i < weight.size(); ++i) weight[i] += kScale * delta[i];
  }
  return pair;
}

void expect_near(const Values& actual, const Values& expected, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  double most = 1e-3;
  for (const double value : expected) most = std::max(most, std::abs(value));
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_NEAR(actual[i], expected[i], 1e-11 * most) << what << " " << i;
  }
}

void expect_chain_rule(const Pair& pair, const ModelRun& adapted, const ModelRun& merged) {
  EXPECT_NEAR(adapted.loss, merged.loss, 1e-12);
  size_t adapters = 0;
  for (const auto& [name, gradient] : adapted.gradients) {
    ASSERT_TRUE(absl::StrContains(name, ".lora_")) << name << " is trained";
    if (!absl::StrContains(name, ".lora_B.")) continue;
    ++adapters;
    const std::string projection = name.substr(0, name.find(".lora_B."));
    const std::string of_a = projection + ".lora_A.weight";
    const Values& b = pair.adapted.values.at(name);
    const Values a = initial_values(pair.adapted).at(of_a);
    const size_t out = b.size() / kRank, in = a.size() / kRank;
    Values dw = merged.gradients.at(projection + ".weight");
    for (double& value : dw) value *= kScale;
    expect_near(gradient, product(dw, transposed(a, kRank, in), out, in, kRank), name);
    expect_near(adapted.gradients.at(of_a), product(transposed(b, out, kRank), dw, kRank, out, in),
                of_a);
  }
  EXPECT_EQ(adapters * 2, adapted.gradients.size());
}

ModelCase base_case(const char* pattern, model::LinearVariant kind) {
  ModelCase c{.config = small_model(),
              .options = {.dtype = DType::kF64},
              .layout = "contiguous",
              .documents = parallel::Documents(37, {0, 7, 20})};
  c.config.pattern = pattern;
  c.config.linear.kind = kind;
  c.config.tied_embeddings = false;
  return c;
}

// Every kind of layer, so that each parameter that kernels would train is frozen once.
TEST(Lora, IsTheModelWithTheAdaptersAddedToItsWeights) {
  using model::LinearVariant;
  for (const auto& [pattern, kind] : {std::pair("N", LinearVariant::kLightning),
                                      {"LN", LinearVariant::kLightning},
                                      {"L", LinearVariant::kGla},
                                      {"L", LinearVariant::kGatedDelta}}) {
    ModelCase c = base_case(pattern, kind);
    c.config.attention.sinks = c.config.softmax_layers() > 0;
    const Pair pair = make_pair(c);
    SCOPED_TRACE(absl::StrCat(pattern, " ", static_cast<int>(kind)));
    const ModelRun adapted = run_on_one_rank(pair.adapted);
    expect_chain_rule(pair, adapted, run_on_one_rank(pair.merged));
    EXPECT_EQ(adapted.gradients.size(), (pattern == std::string("L")    ? 32u
                                         : pattern == std::string("LN") ? 30u
                                                                        : 28u));
    // Recomputation makes the adapters' part again, too.
    ModelCase recomputed = pair.adapted;
    recomputed.options.activations = model::ActivationPolicy::kRecompute;
    EXPECT_EQ(run_on_one_rank(recomputed).gradients, adapted.gradients);
  }
}

TEST(Lora, OverRanks) {
  Pair pair = make_pair(base_case("LN", model::LinearVariant::kLightning));
  pair.adapted.layout = "zigzag";
  const ModelRun merged = run_on_one_rank(pair.merged);
  dist::run_local(3, std::chrono::seconds(60), [&](dist::Group& group) {
    const ModelRun adapted = run_model(group, pair.adapted);
    if (group.rank() == 0) expect_chain_rule(pair, adapted, merged);
  });
}

// B starts at zeros: training begins with the model as it was.
TEST(Lora, ChangesNothingAtFirst) {
  const ModelCase c = base_case("N", model::LinearVariant::kLightning);
  ModelCase adapted = c;
  adapted.config.lora = {.rank = 2, .alpha = 4, .projections = {"q_proj", "down_proj"}};
  EXPECT_EQ(run_on_one_rank(adapted).loss, run_on_one_rank(c).loss);
  const auto gradients = run_on_one_rank(adapted).gradients;
  EXPECT_EQ(gradients.size(), 8u);  // A and B of two projections in two layers
  EXPECT_EQ(gradients.count("model.layers.1.mlp.down_proj.lora_B.weight"), 1u);
}

TEST(Lora, CountsTheParametersThatTheModelDeclares) {
  using model::LinearVariant;
  for (const auto& [pattern, kind] : {std::pair("N", LinearVariant::kLightning),
                                      {"LN", LinearVariant::kLightning},
                                      {"L", LinearVariant::kGatedDelta}}) {
    ModelCase c = base_case(pattern, kind);
    for (const std::string_view projection : model::lora_projections()) {
      c.config.lora = {.rank = 3, .alpha = 1, .projections = {std::string(projection)}};
      int64_t declared = 0, adapters = 0;
      for (const auto& [name, values] : initial_values(c)) {
        const auto size = static_cast<int64_t>(values.size());
        declared += size;
        if (absl::StrContains(name, ".lora_")) adapters += size;
      }
      EXPECT_EQ(declared, c.config.parameters()) << projection;
      EXPECT_EQ(adapters, c.config.trained_parameters()) << projection;
    }
  }
}

TEST(Lora, RefusesWhatCannotBe) {
  const auto refused = [](const model::LoraConfig& lora) {
    model::ModelConfig config = small_model();
    config.lora = lora;
    try {
      config.validate();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_THAT(refused({.rank = -1}), testing::HasSubstr("lora.rank is -1"));
  EXPECT_THAT(refused({.rank = 2, .alpha = 0, .projections = {"q_proj"}}),
              testing::HasSubstr("lora.alpha is 0"));
  EXPECT_THAT(refused({.rank = 2, .alpha = 1}), testing::HasSubstr("lora.projections is empty"));
  EXPECT_THAT(refused({.rank = 2, .alpha = 1, .projections = {"q_porj"}}),
              testing::HasSubstr("\"q_porj\"; choose of q_proj, k_proj"));
}

}  // namespace
}  // namespace longhaul::test
