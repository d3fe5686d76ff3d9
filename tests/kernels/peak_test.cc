// The limits of the machine: that each can be measured with every instruction set. How high they
// are is the machine's business.
#include "kernels/peak.h"

#include <cmath>

#include "gtest/gtest.h"
#include "tests/kernels/instruction_sets.h"

namespace longhaul::kernels {
namespace {

TEST(PeakTest, EveryTypeWithEveryInstructionSet) {
  testing::for_each_instruction_set([] {
    for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16}) {
      for (const int threads : {1, 3}) {
        const double flops = measured_peak_flops(dtype, threads);
        EXPECT_TRUE(std::isfinite(flops) && flops > 0) << name(dtype) << " " << flops;
      }
    }
  });
}

TEST(PeakTest, CopyBandwidthCanBeMeasuredAgain) {
  const CopyBandwidth copy(2);
  testing::for_each_instruction_set([&] {
    const double bytes = copy.measure();
    EXPECT_TRUE(std::isfinite(bytes) && bytes > 0) << bytes;
  });
}

}  // namespace
}  // namespace longhaul::kernels
