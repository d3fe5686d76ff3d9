// The tables from which operations pick their implementations: one Backend per device kind.
//
// A row names an implementation, its dtype and whether this machine can run it; the first row that
// fits is taken, so the best comes first. CMake chooses which backends a binary holds: a build
// without CUDA links kernels/no_cuda, whose tables are empty. To add a kernel, write its file, add
// a row to the backend's table and a line to its CMakeLists.txt; tests and benchmarks iterate the
// tables.
#pragma once

#include <span>

#include "kernels/activation.h"
#include "kernels/adamw.h"
#include "kernels/attention.h"
#include "kernels/attention_sink.h"
#include "kernels/decay_gate.h"
#include "kernels/delta_rule.h"
#include "kernels/embedding.h"
#include "kernels/gated_linear_attention.h"
#include "kernels/gated_unit.h"
#include "kernels/gemm.h"
#include "kernels/linear_attention.h"
#include "kernels/linear_attention_diagonal.h"
#include "kernels/linear_cross_entropy.h"
#include "kernels/lrpe.h"
#include "kernels/pointwise.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/state_maps.h"

namespace longhaul::kernels {

struct Backend {
  DeviceKind device;
  std::string_view description;  // for `longhaul doctor`
  std::span<const AttentionKernel> attention;
  std::span<const AttentionSinkKernel> attention_sink;
  std::span<const LinearAttentionKernel> linear_attention;
  std::span<const GatedLinearAttentionKernel> gated_linear_attention;
  std::span<const DeltaRuleKernel> delta_rule;
  std::span<const GemmKernel> gemm;
  std::span<const StateMapsKernel> state_maps;
  std::span<const LinearAttentionDiagonalKernel> linear_attention_diagonal;
  std::span<const RmsNormKernel> rms_norm;
  std::span<const RopeKernel> rope;
  std::span<const LrpeKernel> lrpe;
  std::span<const GatedUnitKernel> gated_unit;
  std::span<const ActivationKernel> activation;
  std::span<const DecayGateKernel> decay_gate;
  std::span<const EmbeddingKernel> embedding;
  std::span<const LinearCrossEntropyKernel> linear_cross_entropy;
  std::span<const AdamWKernel> adamw;
  std::span<const PointwiseKernel> pointwise;  // one row
};

const Backend& cpu_backend();   // kernels/cpu
const Backend& cuda_backend();  // kernels/cuda, or kernels/no_cuda: all tables empty
const Backend& backend(Device device);

[[noreturn]] void no_kernel(std::string_view operation, Device device, DType dtype);

// The first row for `dtype` that this machine can run. Throws Error(kEnvironment) if none is.
template <class Kernel>
const Kernel& select(std::span<const Kernel> table, std::string_view operation, Device device,
                     DType dtype) {
  for (const Kernel& kernel : table) {
    if (kernel.dtype == dtype && kernel.available()) return kernel;
  }
  no_kernel(operation, device, dtype);
}

inline bool always_available() { return true; }

}  // namespace longhaul::kernels
