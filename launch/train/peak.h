// The speed that MFU compares with.
#pragma once

#include "kernels/core/context.h"

namespace longhaul::launch {

// FLOPs a second: on CPUs what the multiply-add units reach on registers (kernels/peak.h); on GPUs
// the best of a few large matrix products in `dtype`, since their units cannot be reached
// otherwise.
double measured_peak(const Context& ctx, DType dtype);

}  // namespace longhaul::launch
