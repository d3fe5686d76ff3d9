// Stands in for kernels/cuda in builds without CUDA: tables without rows.
#include "kernels/backend.h"

namespace longhaul::kernels {

const Backend& cuda_backend() {
  static const Backend backend{.device = DeviceKind::kCuda,
                               .description = "not built",
                               .attention = {},
                               .attention_sink = {},
                               .linear_attention = {},
                               .gated_linear_attention = {},
                               .delta_rule = {},
                               .gemm = {},
                               .state_maps = {},
                               .linear_attention_diagonal = {},
                               .rms_norm = {},
                               .rope = {},
                               .lrpe = {},
                               .gated_unit = {},
                               .activation = {},
                               .decay_gate = {},
                               .embedding = {},
                               .linear_cross_entropy = {},
                               .adamw = {},
                               .pointwise = {}};
  return backend;
}

}  // namespace longhaul::kernels
