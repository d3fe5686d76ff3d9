// Sums and maxima over ranks, in an order that does not depend on how the data travelled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/core/dtype.h"

namespace longhaul::dist {

enum class ReduceOp { kSum, kMax };

// out[i] = ((inputs[0][i] op inputs[1][i]) op inputs[2][i]) ..., in the accumulator type (integers:
// their own) and rounded to `dtype` once. `out` may be one of the inputs. A NaN wins a maximum.
void reduce_in_order(ReduceOp op, DType dtype, std::span<const std::byte* const> inputs,
                     std::byte* out, int64_t elements);

}  // namespace longhaul::dist
