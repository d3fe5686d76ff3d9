// Tensors of a device between threads, which share it: over the host's memory.
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <chrono>

#include "dist/host_buffers.h"
#include "dist/local/local.h"
#include "kernels/core/cuda_runtime.h"
#include "tests/dist/suite.h"

namespace longhaul::dist {
namespace {

constexpr Device kGpu{DeviceKind::kCuda, 0};

std::vector<testing::Case> cases() {
  std::vector<testing::Case> all = testing::device_cases(kGpu);
  const auto staging = testing::staging_cases(kGpu);
  all.insert(all.end(), staging.begin(), staging.end());
  return all;
}

class DeviceSuite : public ::testing::TestWithParam<std::tuple<int, testing::Case>> {};

TEST_P(DeviceSuite, Passes) {
  if (cuda::device_count() == 0) GTEST_SKIP() << cuda::why_no_device();
  const auto& [ranks, test] = GetParam();
  try {
    run_local(ranks, std::chrono::seconds(60),
              [&](Group& world) { testing::run_case(world, test); });
  } catch (const std::exception& error) {
    FAIL() << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, DeviceSuite,
                         ::testing::Combine(::testing::Values(1, 2, 3, 5),
                                            ::testing::ValuesIn(cases())),
                         [](const auto& param_info) {
                           return absl::StrCat(std::get<1>(param_info.param).name, "_",
                                               std::get<0>(param_info.param));
                         });

TEST(HostBuffers, AreReusedBySize) {
  if (cuda::device_count() == 0) GTEST_SKIP() << cuda::why_no_device();
  HostBuffers buffers(kGpu);
  const auto take = [&](int64_t bytes) { return HostBuffers::Buffer(buffers, bytes); };
  std::byte* first = nullptr;
  {
    const HostBuffers::Buffer a = take(10'000), b = take(10'000);
    first = a.memory();
    EXPECT_NE(a.memory(), b.memory());
  }
  wait_until_idle(buffers.copies());
  const int64_t bytes = buffers.allocated_bytes();
  EXPECT_GE(bytes, 20'000);
  EXPECT_LT(bytes, 25'001);
  {
    const HostBuffers::Buffer a = take(9'000);
    EXPECT_EQ(a.memory(), first);
    const HostBuffers::Buffer small = take(0);  // not the other large one
    EXPECT_EQ(buffers.allocated_bytes(), bytes);
    const HostBuffers::Buffer large = take(100'000);
    EXPECT_GE(buffers.allocated_bytes(), bytes + 100'000);
  }
  wait_until_idle(buffers.copies());
  HostBuffers::Buffer lost = take(10'000);
  std::byte* const memory = lost.memory();
  lost.lose();
  const HostBuffers::Buffer a = take(10'000), b = take(10'000);
  EXPECT_NE(a.memory(), memory);
  EXPECT_NE(b.memory(), memory);
}

}  // namespace
}  // namespace longhaul::dist
