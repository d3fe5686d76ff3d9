// What kernels/cpu/pointwise.cc compiles once per instruction set: functions on rows, in tables.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace longhaul::kernels::cpu {

constexpr size_t kFloatTypes = 3;
static_assert(static_cast<size_t>(DType::kBF16) == 0 && static_cast<size_t>(DType::kF32) == 1 &&
              static_cast<size_t>(DType::kF64) == 2);

// Functions on n elements in a row, by dtype; of pairs, the source's comes first.
struct PointwiseRows {
  using Convert = void (*)(const std::byte* x, std::byte* y, int64_t n);
  using Add = void (*)(const std::byte* x, const std::byte* y, std::byte* z, int64_t n);
  using Sum = double (*)(const std::byte* x, int64_t n);
  using Find = int64_t (*)(const std::byte* x, int64_t n);
  std::array<std::array<Convert, kFloatTypes>, kFloatTypes> copy, add_to;
  std::array<Add, kFloatTypes> add;
  std::array<Sum, kFloatTypes> sum, sum_of_squares;
  std::array<Find, kFloatTypes> find_non_finite;
};

}  // namespace longhaul::kernels::cpu
