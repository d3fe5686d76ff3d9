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
                               .attention = {},
                               .linear_attention = {},
                               .gemm = {},
                               .rms_norm = {},
                               .rope = {},
                               .swiglu = cuda::swiglu_table(),
                               .embedding = {},
                               .linear_cross_entropy = {},
                               .adamw = {},
                               .pointwise = {}};
  return backend;
}

}  // namespace longhaul::kernels
