// Division by a number that a whole grid shares: an integer division costs a GPU tens of
// instructions, as much as the memory of a piece takes.
#pragma once

#include <cstdint>

#include "kernels/core/host_device.h"

namespace longhaul::kernels::cuda {

// Dividends below 2^31 are multiplied by a rounded reciprocal (Granlund and Montgomery 1994,
// section 4): with l = ceil(log2 d) and m = ceil(2^(31 + l) / d), n / d = floor(n m / 2^(31 + l)).
class Divisor {
 public:
  Divisor() = default;
  explicit Divisor(int64_t d) : d_(d) {  // d > 0
    if (d >= kMost) return;
    int l = 0;
    while ((int64_t{1} << l) < d) ++l;
    shift_ = 31 + l;
    factor_ = static_cast<uint32_t>(((uint64_t{1} << shift_) + static_cast<uint64_t>(d) - 1) /
                                    static_cast<uint64_t>(d));
  }

  // n / d, n >= 0.
  LONGHAUL_HOST_DEVICE int64_t quotient(int64_t n) const {
    if (n < kMost && factor_ != 0) {
      return static_cast<int64_t>(static_cast<uint64_t>(n) * factor_ >> shift_);
    }
    return n / d_;
  }

 private:
  static constexpr int64_t kMost = int64_t{1} << 31;

  int64_t d_ = 1;
  uint32_t factor_ = 0;
  int shift_ = 0;
};

}  // namespace longhaul::kernels::cuda
