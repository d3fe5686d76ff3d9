// What a block keeps between forward and backward: one table, read by the block when it allocates,
// and therefore by everything that measures it.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace longhaul::model {

enum class Activation : uint8_t {
  kInput,    // [T, C] the residual stream
  kRstd1,    // [T]
  kNormed1,  // [T, C]
  kQ,        // [T, Hq, D] after RoPE; linear layers: [T, H, Dk] after activation and LRPE
  kK,        // [T, Hkv, D] after RoPE; linear layers: [T, H, Dk] after activation and LRPE
  kV,        // [T, Hkv, D]; linear layers: [T, H, D] after activation
  kOut,      // [T, Hq, D] attention output
  kLse,      // [Hq, T] of softmax
  kQRstd,    // [T*Hq] of the norm of queries, if there is one
  kKRstd,    // [T*Hkv]
  kRawQ,     // [T, H, D] as projected, where something is applied to it before RoPE or LRPE
  kRawK,     // [T, H, D]
  // Of linear layers.
  kRawV,        // [T, H, D]
  kOutputGate,  // [T, H, D] before its activation
  kStates,      // [R, H, Dk, D] what enters each run of the rank's tokens
  kOutRstd,     // [T, H], or [T] for a norm over all heads
  kNormedOut,   // [T, H, D]
  kGatedOut,    // [T, H, D]
  // Of linear layers with gates.
  kGateRank,  // [T, rank] gla's low-rank projection
  kRawGate,   // [T, H*D], or [T, H] for a gate a head, before its activation
  kRawBeta,   // [T, H]
  kLogGate,   // [T, H, D] or [T, H]
  kBeta,      // [T, H]
  // Of every layer.
  kMiddle,   // [T, C] the residual stream after attention
  kRstd2,    // [T]
  kNormed2,  // [T, C]
  kGate,     // [T, F]
  kUp,       // [T, F]
  kGated,    // [T, F]
};
inline constexpr int kActivationCount = 29;

enum class ActivationPolicy : uint8_t {
  kKeep,
  // Aware of what is expensive (LightSeq, Li et al. 2023, section 3.3): borders lie at the
  // attention output, so attention and its communication are never done twice; the projections,
  // norms and the MLP are.
  kRecompute,
};

struct ActivationRule {
  Activation activation;
  std::string_view name;
  bool keep;       // held under kKeep
  bool recompute;  // held under kRecompute; the rest is made again in backward
};

inline constexpr std::array<ActivationRule, kActivationCount> kActivationRules{{
    {Activation::kInput, "input", true, true},
    {Activation::kRstd1, "attention norm scale", true, false},
    {Activation::kNormed1, "attention norm", true, false},
    {Activation::kQ, "queries", true, false},
    {Activation::kK, "keys", true, false},
    {Activation::kV, "values", true, false},
    {Activation::kOut, "attention output", true, true},
    {Activation::kLse, "attention log-sum-exp", true, true},
    {Activation::kQRstd, "query norm scale", true, false},
    {Activation::kKRstd, "key norm scale", true, false},
    {Activation::kRawQ, "projected queries", true, false},
    {Activation::kRawK, "projected keys", true, false},
    {Activation::kRawV, "projected values", true, false},
    {Activation::kOutputGate, "output gate", true, false},
    {Activation::kStates, "entering states", true, true},
    {Activation::kOutRstd, "attention output norm scale", true, false},
    {Activation::kNormedOut, "attention output norm", true, false},
    {Activation::kGatedOut, "gated attention output", true, false},
    {Activation::kGateRank, "gate, low rank", true, false},
    {Activation::kRawGate, "projected gate", true, false},
    {Activation::kRawBeta, "projected strength", true, false},
    {Activation::kLogGate, "log gate", true, false},
    {Activation::kBeta, "writing strength", true, false},
    {Activation::kMiddle, "residual after attention", true, false},
    {Activation::kRstd2, "mlp norm scale", true, false},
    {Activation::kNormed2, "mlp norm", true, false},
    {Activation::kGate, "mlp gate", true, false},
    {Activation::kUp, "mlp up", true, false},
    {Activation::kGated, "mlp gated", true, false},
}};

constexpr bool keeps(ActivationPolicy policy, Activation activation) {
  const ActivationRule& rule = kActivationRules[static_cast<size_t>(activation)];
  return policy == ActivationPolicy::kKeep ? rule.keep : rule.recompute;
}

}  // namespace longhaul::model
