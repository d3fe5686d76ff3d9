// What the rows of the CPU's tables ask of the machine.
#pragma once

namespace longhaul::kernels::cpu {

// Products of bf16 pairs with f32 sums (AVX512-BF16's vdpbf16ps), on top of Highway's AVX-512.
bool has_bf16_products();

// Whether the processor could do them, whatever instruction set is in use. One file per kind of
// processor: machine_x86.cc, machine_other.cc.
bool machine_has_bf16_products();

}  // namespace longhaul::kernels::cpu
