// What this machine's cores can do: the limit that speeds are compared with.
#pragma once

namespace longhaul::kernels {

// f32 fused multiply-adds a second x 2, over `threads` threads at once, measured on registers in a
// few tens of milliseconds with the widest vectors this machine has.
double measured_peak_flops(int threads);

}  // namespace longhaul::kernels
