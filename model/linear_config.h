// What a model's linear-attention layers are, and which layers they are.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/activation.h"

namespace longhaul::model {

// How a state forgets.
enum class LinearVariant : uint8_t {
  kLightning,   // a fixed decay for each head (Qin et al. 2024): `slopes` says which
  kRetention,   // the fixed decays of RetNet (Sun et al. 2023): e^-slope = 1 - 2^(-5 - h)
  kBasic,       // not at all (Katharopoulos et al. 2020)
  kGla,         // by a gate for each key dimension and token (Yang et al. 2024)
  kGatedDelta,  // by a gate and by what is overwritten (Gated DeltaNet, Yang et al. 2025)
};

// Of kLightning, for head h of H in layer l of L. Where H is no power of two, the sequence 2^(-8 (h
// + 1) / H) is interleaved as ALiBi's is (model/attention_options.h).
enum class Slopes : uint8_t {
  kAlibi,            // 2^(-8 (h + 1) / H) in every layer (Press et al. 2022)
  kTransNormer,      // that times 1 - l / (L - 1) + 1e-5: TransNormerLLM's code, and MiniMax-01's
  kTransNormerPaper  // (8 h / H) (1 - l / L): TransNormerLLM's paper (Qin et al. 2023, section 3.1)
};

enum class OutputNorm : uint8_t {
  kPerHead,   // RMSNorm of each head, one weight for all
  kAllHeads,  // RMSNorm over all heads
  kSimple,    // SRMSNorm over all heads: without weight
};

struct LinearConfig {
  LinearVariant kind = LinearVariant::kLightning;
  Slopes slopes = Slopes::kAlibi;
  kernels::Activation feature = kernels::Activation::kSilu;              // of queries and keys
  kernels::Activation value_feature = kernels::Activation::kIdentity;    // of values
  std::optional<kernels::Activation> gate = kernels::Activation::kSilu;  // of the output; or none
  OutputNorm norm = OutputNorm::kPerHead;
  int64_t heads = 0;     // 0: the softmax layers' query heads
  int64_t head_dim = 0;  // 0: the softmax layers'
  // Layers with TransNormerLLM's relative positions (kernels/lrpe.h), ascending.
  std::vector<int64_t> lrpe_layers = {};
};

// The names of configurations, in one table for each choice.
template <class Value>
struct Named {
  std::string_view name;
  Value value;
};
std::span<const Named<LinearVariant>> linear_variants();
std::span<const Named<Slopes>> slope_formulas();
std::span<const Named<kernels::Activation>> features();  // of queries, keys and values
std::span<const Named<std::optional<kernels::Activation>>> output_gates();
std::span<const Named<OutputNorm>> output_norms();

template <class Value>
std::string_view name_of(std::span<const Named<Value>> table, const Value& value) {
  for (const Named<Value>& row : table) {
    if (row.value == value) return row.name;
  }
  return "";
}

// Slopes of a layer with a fixed decay (all but kGla and kGatedDelta), one for each head; decay is
// e^-slope a token.
std::vector<double> linear_slopes(const LinearConfig& config, int64_t heads, int64_t layer,
                                  int64_t layers);

}  // namespace longhaul::model
