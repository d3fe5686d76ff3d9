#include "tests/model/hybrid_cases.h"

#include "tests/model/model_run.h"

namespace longhaul::test {

namespace {

using kernels::Activation;
using model::LinearConfig;
using model::LinearVariant;
using model::ModelConfig;
using model::OutputNorm;
using model::Slopes;

ModelConfig with(const std::string& pattern, const LinearConfig& linear) {
  ModelConfig config = small_model();
  config.pattern = pattern;
  config.linear = linear;
  return config;
}

ModelConfig transnormer(Slopes slopes) {
  ModelConfig config = with("L", {.slopes = slopes,
                                  .gate = Activation::kIdentity,
                                  .norm = OutputNorm::kSimple,
                                  .lrpe_layers = {0}});
  config.layers = 3;
  config.norm = model::NormKind::kSimple;
  config.mlp_gate = Activation::kIdentity;
  config.scale_embeddings = true;
  config.tied_embeddings = false;
  return config;
}

ModelConfig minimax() {
  ModelConfig config = with("LN", {.slopes = Slopes::kTransNormer,
                                   .value_feature = Activation::kSilu,
                                   .gate = Activation::kSigmoid,
                                   .norm = OutputNorm::kAllHeads});
  config.residual_scale = 1.5;
  config.attention.sliding_window = 9;
  return config;
}

}  // namespace

std::vector<HybridCase> hybrid_cases() {
  return {
      {"lightning", with("L", {})},
      // No power of two, and no divisor of anything: slopes are interleaved.
      {"lightning, heads of its own", with("LN", {.heads = 3, .head_dim = 5})},
      {"retention", with("NL", {.kind = LinearVariant::kRetention})},
      {"basic, bare", with("L", {.kind = LinearVariant::kBasic,
                                 .feature = Activation::kIdentity,
                                 .gate = std::nullopt})},
      {"positions without activation",
       with("LN", {.feature = Activation::kIdentity, .lrpe_layers = {0}})},
      {"transnormer", transnormer(Slopes::kTransNormer)},
      {"transnormer, slopes of the paper", transnormer(Slopes::kTransNormerPaper)},
      {"minimax", minimax()},
      {"gla", with("LN", {.kind = LinearVariant::kGla})},
      {"gated delta rule", with("L", {.kind = LinearVariant::kGatedDelta, .lrpe_layers = {1}})},
      {"gated delta rule, bare", with("NL", {.kind = LinearVariant::kGatedDelta,
                                             .feature = Activation::kIdentity,
                                             .gate = std::nullopt})},
  };
}

}  // namespace longhaul::test
