// Element types, and bfloat16 as a storage type.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>
#include <utility>

#include "kernels/core/error.h"

namespace longhaul {

enum class DType : uint8_t { kBF16, kF32, kF64, kI32, kI64 };

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return 2;
    case DType::kF32:
      return 4;
    case DType::kF64:
      return 8;
    case DType::kI32:
      return 4;
    case DType::kI64:
      return 8;
  }
  return 0;
}
std::string_view name(DType dtype);

// Whatever is summed or merged is held in this type: f32 for bf16 and f32, f64 for f64.
constexpr DType accumulator(DType dtype) {
  return dtype == DType::kF64 ? DType::kF64 : DType::kF32;
}

// Storage only; arithmetic is done in float. Conversion rounds to nearest even and keeps NaN.
struct bf16 {
  uint16_t bits = 0;

  bf16() = default;
  explicit constexpr bf16(float value) : bits(round(value)) {}
  constexpr operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }

 private:
  static constexpr uint16_t round(float value) {
    const uint32_t u = std::bit_cast<uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
    return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
};
static_assert(sizeof(bf16) == 2);

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::kBF16;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kF32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kF64;
};
template <>
struct DTypeOf<int32_t> {
  static constexpr DType value = DType::kI32;
};
template <>
struct DTypeOf<int64_t> {
  static constexpr DType value = DType::kI64;
};
template <class T>
inline constexpr DType dtype_of = DTypeOf<T>::value;

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

// Calls f.template operator()<T>() with the C++ type of a floating dtype.
template <class F>
decltype(auto) visit_float(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBF16:
      return std::forward<F>(f).template operator()<bf16>();
    case DType::kF32:
      return std::forward<F>(f).template operator()<float>();
    case DType::kF64:
      return std::forward<F>(f).template operator()<double>();
    default:
      check_failed(__FILE__, __LINE__, "dtype is a floating type");
  }
}

}  // namespace longhaul
