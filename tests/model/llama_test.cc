// The model on one rank: its loss against a naive forward pass, its gradients against finite
// differences, and what the activation policies keep.
#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "model/model.h"
#include "model/presets.h"
#include "tests/model/model_run.h"
#include "tests/model/naive_llama.h"

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

// The same initial values as run_model's, read from a store of its own.
std::map<std::string, std::vector<double>> initial_values(const ModelCase& c) {
  ThreadPool pool(1);
  Arena workspace("workspace", 1 << 20), values("values", 1 << 20), gradients("grads", 1 << 20);
  const Context ctx{.pool = &pool, .scratch = &workspace};
  parallel::ParameterStore store(c.options.dtype, 1);
  const auto network = model::architecture("llama").make(c.config, c.options, store);
  store.allocate(ctx, values, gradients);
  store.initialize(ctx, 3);
  std::map<std::string, std::vector<double>> result;
  for (const auto& entry : store.entries()) {
    const auto span = store.bucket_of(entry).values.rows(entry.offset, entry.size()).span<double>();
    result[entry.spec.name] = {span.begin(), span.end()};
  }
  return result;
}

double naive_loss(const ModelCase& c) {
  const auto values = initial_values(c);
  const auto tokens = random_tokens(c.documents.tokens(), c.config.vocabulary, 7);
  const auto labels = labels_of(tokens, c.documents);
  const auto losses = naive_llama_loss(
      c.config,
      [&](const std::string& name) -> const std::vector<double>& { return values.at(name); },
      tokens, labels, c.documents);
  const auto targets =
      std::count_if(labels.begin(), labels.end(), [](int32_t l) { return l >= 0; });
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(targets);
}

TEST(Llama, LossEqualsNaiveForward) {
  for (bool tied : {true, false}) {
    const ModelCase c = base_case(tied);
    const double expected = naive_loss(c);
    EXPECT_NEAR(run_on_one_rank(c).loss, expected, 1e-12 * expected);
  }
}

TEST(Llama, GradientsEqualFiniteDifferences) {
  for (bool tied : {true, false}) {
    const ModelCase c = base_case(tied);
    const ModelRun run = run_on_one_rank(c);
    for (const auto& [name, gradient] : run.gradients) {
      // A few elements of every parameter. Central differences of step h are off by O(h^2) and
      // rounding / h: 1e-5 leaves about 1e-10 of either.
      constexpr double kStep = 1e-5;
      for (size_t i = 0; i < gradient.size(); i += 1 + gradient.size() / 3) {
        ModelCase moved = c;
        moved.moved_parameter = name;
        moved.moved_element = static_cast<int64_t>(i);
        moved.moved_by = kStep;
        const double up = run_on_one_rank(moved).loss;
        moved.moved_by = -kStep;
        const double down = run_on_one_rank(moved).loss;
        EXPECT_NEAR(gradient[i], (up - down) / (2 * kStep), 1e-8) << name << " " << i;
      }
    }
  }
}

TEST(Llama, RecomputationGivesTheSameBitsFromLessMemoryAndNoSecondAttention) {
  ModelCase c = base_case(true);
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
    const ModelCase c = base_case(tied);
    int64_t declared = 0;
    for (const auto& [name, values] : initial_values(c)) {
      declared += static_cast<int64_t>(values.size());
    }
    EXPECT_EQ(declared, c.config.parameters());
  }
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
}

}  // namespace
}  // namespace longhaul::test
