#include "kernels/backend.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/instruction_set.h"
#include "kernels/cpu/tables.h"
#include "kernels/instruction_set.h"

namespace longhaul::kernels {

namespace {

std::string describe() {
  return absl::StrCat("CPU: vector code for ", std::string(instruction_set()),
                      cpu::has_bf16_products() ? ", bf16 products in hardware" : "");
}

}  // namespace

const Backend& cpu_backend() {
  static const std::string description = describe();
  static const Backend backend{.device = DeviceKind::kCpu,
                               .description = description,
                               .attention = cpu::attention_table(),
                               .attention_sink = cpu::attention_sink_table(),
                               .linear_attention = cpu::linear_attention_table(),
                               .gated_linear_attention = cpu::gated_linear_attention_table(),
                               .delta_rule = cpu::delta_rule_table(),
                               .gemm = cpu::gemm_table(),
                               .state_maps = cpu::state_maps_table(),
                               .linear_attention_diagonal = cpu::linear_attention_diagonal_table(),
                               .rms_norm = cpu::rms_norm_table(),
                               .rope = cpu::rope_table(),
                               .lrpe = cpu::lrpe_table(),
                               .gated_unit = cpu::gated_unit_table(),
                               .activation = cpu::activation_table(),
                               .decay_gate = cpu::decay_gate_table(),
                               .embedding = cpu::embedding_table(),
                               .linear_cross_entropy = cpu::linear_cross_entropy_table(),
                               .adamw = cpu::adamw_table(),
                               .pointwise = cpu::pointwise_table()};
  return backend;
}

}  // namespace longhaul::kernels
