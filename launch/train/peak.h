// The speed that MFU compares with.
#pragma once

#include "kernels/core/context.h"

namespace longhaul::launch {

// FLOPs a second: on CPUs what the multiply-add units reach on registers (kernels/peak.h); on GPUs
// the best of a few large matrix products in `dtype`, since their units cannot be reached
// otherwise.
double measured_peak(const Context& ctx, DType dtype);

// Bytes a second, read and written, of copies within a GPU's memory that no cache holds.
double measured_copy(const Context& ctx);

}  // namespace longhaul::launch
