// The CUDA backend's tables; each stands in the file of its operation.
#pragma once

#include "kernels/backend.h"

namespace longhaul::kernels::cuda {

// Whether this machine has a GPU that the kernels were compiled for.
bool available();

std::span<const AttentionKernel> attention_table();
std::span<const AttentionSinkKernel> attention_sink_table();
std::span<const LinearAttentionKernel> linear_attention_table();
std::span<const GatedLinearAttentionKernel> gated_linear_attention_table();
std::span<const GemmKernel> gemm_table();
std::span<const StateMapsKernel> state_maps_table();
std::span<const LinearAttentionDiagonalKernel> linear_attention_diagonal_table();
std::span<const RmsNormKernel> rms_norm_table();
std::span<const RopeKernel> rope_table();
std::span<const LrpeKernel> lrpe_table();
std::span<const GatedUnitKernel> gated_unit_table();
std::span<const ActivationKernel> activation_table();
std::span<const DecayGateKernel> decay_gate_table();
std::span<const DeltaRuleKernel> delta_rule_table();
std::span<const EmbeddingKernel> embedding_table();
std::span<const LinearCrossEntropyKernel> linear_cross_entropy_table();
std::span<const AdamWKernel> adamw_table();
std::span<const PointwiseKernel> pointwise_table();

}  // namespace longhaul::kernels::cuda
