// Floating types of safetensors files, also those that Longhaul does not compute with, to and from
// its own.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "kernels/core/tensor.h"

namespace longhaul::checkpoint::huggingface {

// Bytes of an element of F64, F32, BF16 or F16; 0 for every other type of the format.
int64_t float_bytes(std::string_view dtype);

// `out` (bf16, f32 or f64; contiguous, on the CPU) = the elements in `bytes`, of a type that
// float_bytes() knows; as many as `out` has. Rounds to nearest even where `out` has fewer digits.
void convert(std::string_view dtype, std::span<const std::byte> bytes, const TensorView& out);

}  // namespace longhaul::checkpoint::huggingface
