#include "model/presets.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::model {

namespace {

const std::array<Preset, 7>& table() {
  static const std::array<Preset, 7> kPresets{{
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
