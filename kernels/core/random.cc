#include "kernels/core/random.h"

#include <cmath>
#include <numbers>

namespace longhaul {

double random_normal(RandomKey key, uint64_t index) {
  const auto bits = random_bits(key, index);
  const uint64_t a = (uint64_t{bits[1]} << 32) | bits[0], b = (uint64_t{bits[3]} << 32) | bits[2];
  const double u = (static_cast<double>(a >> 11) + 1.0) * 0x1.0p-53;  // (0, 1]
  const double v = static_cast<double>(b >> 11) * 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

}  // namespace longhaul
