#include "kernels/backend.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "dnnl.hpp"
#include "hwy/targets.h"
#include "kernels/cpu/tables.h"

namespace longhaul::kernels {

namespace {

// Highway's targets in bits, the best one lowest.
std::string describe() {
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  const int64_t best = targets & -targets;
  const bool fast_bf16 = dnnl::get_effective_cpu_isa() >= dnnl::cpu_isa::avx512_core_bf16;
  return absl::StrCat("CPU: vector code for ", hwy::TargetName(best),
                      fast_bf16 ? ", bf16 products in hardware" : "");
}

}  // namespace

const Backend& cpu_backend() {
  static const std::string description = describe();
  static const Backend backend{.device = DeviceKind::kCpu,
                               .description = description,
                               .attention = cpu::attention_table(),
                               .gemm = cpu::gemm_table(),
                               .rms_norm = cpu::rms_norm_table(),
                               .rope = cpu::rope_table(),
                               .swiglu = cpu::swiglu_table(),
                               .embedding = cpu::embedding_table(),
                               .linear_cross_entropy = cpu::linear_cross_entropy_table(),
                               .adamw = cpu::adamw_table(),
                               .pointwise = cpu::pointwise_table()};
  return backend;
}

}  // namespace longhaul::kernels
