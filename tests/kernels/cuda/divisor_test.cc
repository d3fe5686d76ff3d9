#include "kernels/cuda/divisor.h"

#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace longhaul::kernels::cuda {
namespace {

std::vector<int64_t> numbers() {
  std::vector<int64_t> result;
  for (int64_t n = 0; n < 300; ++n) result.push_back(n);
  for (int bits = 9; bits < 40; ++bits) {
    for (const int64_t away : {-2, -1, 0, 1, 2, 12345}) {
      result.push_back((int64_t{1} << bits) + away);
    }
  }
  std::mt19937_64 random(5);
  for (int n = 0; n < 300; ++n) result.push_back(static_cast<int64_t>(random() >> (25 + n % 30)));
  return result;
}

TEST(Divisor, IsExact) {
  for (const int64_t d : numbers()) {
    if (d < 1) continue;
    const Divisor by(d);
    for (const int64_t n : numbers()) {
      if (n < 0) continue;
      ASSERT_EQ(by.quotient(n), n / d) << n << " / " << d;
      // Where quotients change.
      const int64_t multiple = n / d * d;
      ASSERT_EQ(by.quotient(multiple), n / d) << multiple << " / " << d;
      if (multiple == 0) continue;
      ASSERT_EQ(by.quotient(multiple - 1), n / d - 1) << multiple - 1 << " / " << d;
    }
  }
}

}  // namespace
}  // namespace longhaul::kernels::cuda
