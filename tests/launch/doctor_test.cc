#include "launch/doctor/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <nlohmann/json.hpp>

namespace longhaul::launch {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

Diagnosis healthy() {
  Diagnosis d;
  d.host = "node7";
  d.cores = {.of_node = 64, .in_affinity = 32, .group_quota = 8.0, .usable = 8};
  d.instruction_sets = {{"AVX2", true}};
  d.memory = {.total_bytes = 64 * kGiB, .available_bytes = 32 * kGiB, .group_limit_bytes = {}};
  d.shared_memory = {.present = true, .size_bytes = kGiB, .free_bytes = kGiB};
  d.mpirun = "mpirun (Open MPI) 4.1.4";
  d.launched_by = "a shell";
  d.backends = {{.device = "cpu", .description = "x", .kernels = 9, .runnable = 9}};
  return d;
}

TEST(Judge, AHealthyMachineHasNoFindings) { EXPECT_TRUE(judge(healthy()).empty()); }

TEST(Judge, WhatIsMissingIsNamedWithItsFix) {
  struct Case {
    std::string what, fix;
    bool blocks;
    std::function<void(Diagnosis&)> break_it;
  };
  const std::vector<Case> cases = {
      {"kernels", "build", true, [](Diagnosis& d) { d.backends[0].runnable = 0; }},
      {"memory", "control group", true, [](Diagnosis& d) { d.memory.available_bytes = 1 << 20; }},
      {"memory", "limit", true, [](Diagnosis& d) { d.memory.group_limit_bytes = 1 << 20; }},
      {"/dev/shm", "mount", false, [](Diagnosis& d) { d.shared_memory.present = false; }},
      {"/dev/shm", "--shm-size", false, [](Diagnosis& d) { d.shared_memory.free_bytes = 0; }},
      {"mpirun", "setup.sh", false, [](Diagnosis& d) { d.mpirun.reset(); }},
      {"AVX2", "machine", false, [](Diagnosis& d) { d.instruction_sets[0].present = false; }}};
  for (const Case& broken : cases) {
    Diagnosis d = healthy();
    broken.break_it(d);
    d.findings = judge(d);
    ASSERT_EQ(d.findings.size(), 1u) << broken.what;
    EXPECT_THAT(d.findings[0].what, HasSubstr(broken.what));
    EXPECT_THAT(d.findings[0].fix, HasSubstr(broken.fix));
    EXPECT_EQ(d.can_train(), !broken.blocks) << broken.what;
    EXPECT_THAT(to_table(d), HasSubstr(d.findings[0].fix));
    const auto json = nlohmann::json::parse(to_json(d));
    EXPECT_EQ(json["findings"][0]["fix"], d.findings[0].fix);
    EXPECT_EQ(json["can_train"], d.can_train());
  }
}

TEST(Host, UsableCoresFollowTheAffinityMask) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  EXPECT_EQ(available_cores().in_affinity, CPU_COUNT(&before));
  CPU_ZERO(&one);
  int first = 0;
  while (!CPU_ISSET(first, &before)) ++first;
  CPU_SET(first, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(available_cores().in_affinity, 1);
  EXPECT_EQ(available_cores().usable, 1);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

TEST(Host, ProgramsAreAskedWithoutAShell) {
  EXPECT_EQ(first_line_of({"printf", "a b\nc"}), "a b");
  EXPECT_EQ(first_line_of({"false"}), std::nullopt);
  EXPECT_EQ(first_line_of({"no-such-program-anywhere"}), std::nullopt);
  EXPECT_EQ(first_line_of({"echo", "$HOME;x"}), "$HOME;x");
}

}  // namespace
}  // namespace longhaul::launch
