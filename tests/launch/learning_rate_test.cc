#include <gtest/gtest.h>

#include "launch/train/schedule.h"

namespace longhaul::launch {
namespace {

TEST(Schedule, WarmsUpAndFollowsACosine) {
  const Schedule schedule{.peak = 1.0, .minimum = 0.1, .warmup_steps = 10, .steps = 110};
  EXPECT_DOUBLE_EQ(schedule(1), 0.1);
  EXPECT_DOUBLE_EQ(schedule(10), 1.0);
  EXPECT_DOUBLE_EQ(schedule(60), 0.55);
  EXPECT_DOUBLE_EQ(schedule(110), 0.1);
}

}  // namespace
}  // namespace longhaul::launch
