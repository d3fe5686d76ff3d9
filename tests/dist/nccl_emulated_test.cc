// dist/nccl's queues, deadlines and counters, over an NCCL of threads (tests/nccl_emulator).
#include <absl/strings/str_cat.h>
#include <gtest/gtest.h>

#include <chrono>

#include "dist/local/local.h"
#include "dist/nccl/transport.h"
#include "tests/dist/suite.h"

namespace longhaul::dist {
namespace {

constexpr Device kGpu{DeviceKind::kCuda, 0};

std::vector<testing::Case> cases() {
  std::vector<testing::Case> all = testing::device_cases(kGpu);
  const auto native = testing::native_cases(kGpu);
  all.insert(all.end(), native.begin(), native.end());
  return all;
}

class NcclSuite : public ::testing::TestWithParam<std::tuple<int, testing::Case>> {};

TEST_P(NcclSuite, Passes) {
  const auto& [ranks, test] = GetParam();
  try {
    run_local(ranks, std::chrono::seconds(60), [&](Group& world) {
      const auto group = world.split(0, world.rank());
      group->use(nccl::connect(*group, kGpu));
      testing::run_case(*group, test);
    });
  } catch (const std::exception& error) {
    FAIL() << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, NcclSuite,
                         ::testing::Combine(::testing::Values(1, 2, 3, 5),
                                            ::testing::ValuesIn(cases())),
                         [](const auto& param_info) {
                           return absl::StrCat(std::get<1>(param_info.param).name, "_",
                                               std::get<0>(param_info.param));
                         });

}  // namespace
}  // namespace longhaul::dist
