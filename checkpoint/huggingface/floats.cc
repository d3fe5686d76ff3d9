#include "checkpoint/huggingface/floats.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/core/error.h"

namespace longhaul::checkpoint::huggingface {

namespace {

// IEEE 754 binary16; every value of it is an f32.
struct Half {
  uint16_t bits = 0;
  explicit operator float() const {
    const int exponent = (bits >> 10) & 31;
    const int fraction = bits & 1023;
    const uint32_t sign = uint32_t{bits & 0x8000U} << 16;
    if (exponent == 31) {
      const uint32_t payload = static_cast<uint32_t>(fraction) << 13;
      return std::bit_cast<float>(sign | 0x7f800000U | payload);
    }
    const float magnitude = exponent == 0
                                ? std::ldexp(static_cast<float>(fraction), -24)
                                : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    return sign != 0 ? -magnitude : magnitude;
  }
};

// The f32 next to `value` whose last digit is odd, or `value` itself: from there to a shorter type
// rounds as from `value` (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums",
// section 3). Rounded to nearest twice, what was just above a tie could go down.
float rounded_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  if (nearest == value || std::isnan(value)) return nearest;
  auto bits = std::bit_cast<uint32_t>(nearest);
  if (std::abs(static_cast<double>(nearest)) > std::abs(value)) --bits;  // towards zero
  return std::bit_cast<float>(bits | 1U);
}

template <class From, class To>
To converted(From value) {
  if constexpr (std::is_same_v<To, bf16> && std::is_same_v<From, double>) {
    return bf16(rounded_to_odd(value));
  } else if constexpr (std::is_same_v<From, Half> || std::is_same_v<From, bf16>) {
    return static_cast<To>(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

template <class From>
void convert_from(std::span<const std::byte> bytes, const TensorView& out) {
  LONGHAUL_CHECK(static_cast<int64_t>(bytes.size()) ==
                 out.elements() * static_cast<int64_t>(sizeof(From)));
  visit_float(out.dtype(), [&]<class To>() {
    if constexpr (std::is_same_v<From, To>) {
      std::memcpy(out.raw(), bytes.data(), bytes.size());  // NaNs as they are
    } else {
      To* to = out.data<To>();
      for (size_t i = 0; i < bytes.size() / sizeof(From); ++i) {
        From value;
        std::memcpy(&value, bytes.data() + i * sizeof(From), sizeof(From));
        to[i] = converted<From, To>(value);
      }
    }
  });
}

}  // namespace

int64_t float_bytes(std::string_view dtype) {
  if (dtype == "F64") return 8;
  if (dtype == "F32") return 4;
  return dtype == "BF16" || dtype == "F16" ? 2 : 0;
}

void convert(std::string_view dtype, std::span<const std::byte> bytes, const TensorView& out) {
  LONGHAUL_CHECK(out.contiguous() && float_bytes(dtype) > 0);
  if (out.empty()) return;
  if (dtype == "F64") return convert_from<double>(bytes, out);
  if (dtype == "F32") return convert_from<float>(bytes, out);
  if (dtype == "BF16") return convert_from<bf16>(bytes, out);
  convert_from<Half>(bytes, out);
}

}  // namespace longhaul::checkpoint::huggingface
