#include "kernels/cpu/instruction_set.h"

namespace longhaul::kernels {

bool cpu::machine_has_bf16_products() { return __builtin_cpu_supports("avx512bf16") != 0; }

}  // namespace longhaul::kernels
