#include "kernels/backend.h"

#include "kernels/core/cuda_runtime.h"
#include "kernels/cuda/tables.h"

namespace longhaul::kernels {

namespace cuda {

bool available() {
  static const bool has_device = longhaul::cuda::device_count() > 0;
  return has_device;
}

}  // namespace cuda

const Backend& cuda_backend() {
  static const Backend backend{.device = DeviceKind::kCuda,
                               .description = "CUDA, compute capability 8.0 and higher",
                               .attention = cuda::attention_table(),
                               .attention_sink = cuda::attention_sink_table(),
                               .linear_attention = cuda::linear_attention_table(),
                               .gated_linear_attention = cuda::gated_linear_attention_table(),
                               .delta_rule = cuda::delta_rule_table(),
                               .gemm = cuda::gemm_table(),
                               .state_maps = cuda::state_maps_table(),
                               .linear_attention_diagonal = cuda::linear_attention_diagonal_table(),
                               .rms_norm = cuda::rms_norm_table(),
                               .rope = cuda::rope_table(),
                               .lrpe = cuda::lrpe_table(),
                               .gated_unit = cuda::gated_unit_table(),
                               .activation = cuda::activation_table(),
                               .decay_gate = cuda::decay_gate_table(),
                               .embedding = cuda::embedding_table(),
                               .linear_cross_entropy = cuda::linear_cross_entropy_table(),
                               .adamw = cuda::adamw_table(),
                               .pointwise = cuda::pointwise_table()};
  return backend;
}

}  // namespace longhaul::kernels
