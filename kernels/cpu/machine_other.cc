#include "kernels/cpu/instruction_set.h"

namespace longhaul::kernels {

bool cpu::machine_has_bf16_products() { return false; }

}  // namespace longhaul::kernels
