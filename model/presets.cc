#include "model/presets.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::model {

namespace {

// What models of the family have in common: all layers linear, relative positions in the first.
ModelConfig transnormer(ModelConfig sizes) {
  sizes.head_dim = sizes.width / sizes.heads;
  sizes.kv_heads = sizes.heads;
  sizes.tied_embeddings = true;
  sizes.pattern = std::string("L");
  sizes.linear = {.slopes = Slopes::kTransNormer,
                  .gate = kernels::Activation::kIdentity,
                  .norm = OutputNorm::kSimple,
                  .lrpe_layers = {0}};
  sizes.norm = NormKind::kSimple;
  sizes.mlp_gate = kernels::Activation::kIdentity;
  sizes.scale_embeddings = true;
  return sizes;
}

const std::array<Preset, 12>& table() {
  static const std::array<Preset, 12> kPresets{{
      {"tiny",
       "for tests: seconds on one core",
       {.vocabulary = 256,
        .layers = 2,
        .width = 64,
        .heads = 4,
        .kv_heads = 2,
        .head_dim = 16,
        .mlp_width = 128,
        .tied_embeddings = true}},
      {"quickstart",
       "bytes to text on two cores in minutes",
       {.vocabulary = 256,
        .layers = 2,
        .width = 256,
        .heads = 2,
        .kv_heads = 1,
        .head_dim = 64,
        .mlp_width = 1024,
        .tied_embeddings = false}},
      {"25m",
       "a small byte-level model",
       {.vocabulary = 256,
        .layers = 8,
        .width = 512,
        .heads = 8,
        .kv_heads = 4,
        .head_dim = 64,
        .mlp_width = 1376,
        .tied_embeddings = true}},
      {"110m",
       "the size of GPT-2 small",
       {.vocabulary = 50304,
        .layers = 12,
        .width = 768,
        .heads = 12,
        .kv_heads = 12,
        .head_dim = 64,
        .mlp_width = 2048,
        .tied_embeddings = true}},
      {"llama3.2-1b",
       "Llama 3.2 1B",
       {.vocabulary = 128256,
        .layers = 16,
        .width = 2048,
        .heads = 32,
        .kv_heads = 8,
        .head_dim = 64,
        .mlp_width = 8192,
        .rope = {.theta = 500000.0, .scaling = kernels::RopeScaling{.factor = 32.0}},
        .tied_embeddings = true}},
      {"llama3.2-3b",
       "Llama 3.2 3B",
       {.vocabulary = 128256,
        .layers = 28,
        .width = 3072,
        .heads = 24,
        .kv_heads = 8,
        .head_dim = 128,
        .mlp_width = 8192,
        .rope = {.theta = 500000.0, .scaling = kernels::RopeScaling{.factor = 32.0}},
        .tied_embeddings = true}},
      {"llama3-8b",
       "Llama 3 8B",
       {.vocabulary = 128256,
        .layers = 32,
        .width = 4096,
        .heads = 32,
        .kv_heads = 8,
        .head_dim = 128,
        .mlp_width = 14336,
        .rope = {.theta = 500000.0},
        .tied_embeddings = false}},
      {"linear-llama3-25m",
       "25m with lightning attention in three of four layers",
       {.vocabulary = 256,
        .layers = 8,
        .width = 512,
        .heads = 8,
        .kv_heads = 4,
        .head_dim = 64,
        .mlp_width = 1376,
        .tied_embeddings = true,
        .pattern = "LLLN"}},
      {"linear-llama3-1b",
       "Linear-Llama3-1B of LASP-2 (Sun et al. 2025)",
       {.vocabulary = 128256,
        .layers = 16,
        .width = 2048,
        .heads = 16,
        .kv_heads = 8,
        .head_dim = 128,
        .mlp_width = 8192,
        .rope = {.theta = 500000.0},
        .tied_embeddings = false,
        .pattern = "L",
        .linear = {.kind = LinearVariant::kBasic}}},
      {"transnormerllm-small", "TransNormerLLM for two cores",
       transnormer({.vocabulary = 256, .layers = 4, .width = 256, .heads = 4, .mlp_width = 704})},
      {"transnormerllm-385m", "TransNormerLLM 385M (Qin et al. 2023)",
       transnormer(
           {.vocabulary = 64000, .layers = 24, .width = 1024, .heads = 8, .mlp_width = 2816})},
      {"minimax-01-small",
       "MiniMax-01's blocks (Li et al. 2025) without experts, for two cores",
       {.vocabulary = 256,
        .layers = 8,
        .width = 256,
        .heads = 4,
        .kv_heads = 2,
        .head_dim = 64,
        .mlp_width = 704,
        .tied_embeddings = false,
        .pattern = "LLLLLLLN",
        .linear = {.slopes = Slopes::kTransNormer,
                   .value_feature = kernels::Activation::kSilu,
                   .gate = kernels::Activation::kSigmoid,
                   .norm = OutputNorm::kAllHeads},
        .residual_scale = 2.0}},  // (2 layers)^(1/4)
  }};
  return kPresets;
}

}  // namespace

std::span<const Preset> presets() { return table(); }

const Preset& preset(std::string_view name) {
  std::string known;
  for (const Preset& row : table()) {
    if (row.name == name) return row;
    absl::StrAppend(&known, known.empty() ? "" : ", ", std::string(row.name));
  }
  fail(ErrorCode::kConfig,
       absl::StrCat("model.preset is \"", std::string(name), "\"; known presets: ", known));
}

}  // namespace longhaul::model
