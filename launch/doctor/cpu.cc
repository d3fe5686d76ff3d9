#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "launch/doctor/control_group.h"
#include "launch/doctor/host.h"

namespace longhaul::launch {
namespace {

int cores_in_affinity(int of_node) {
  // The kernel wants a mask at least as large as its own, so machines beyond 1024 cores need more.
  for (int capacity = 1024; capacity <= (1 << 20); capacity *= 4) {
    cpu_set_t* set = CPU_ALLOC(static_cast<size_t>(capacity));
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(static_cast<size_t>(capacity));
    CPU_ZERO_S(bytes, set);
    const bool fits = sched_getaffinity(0, bytes, set) == 0;
    const int count = fits ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (fits) return std::max(1, count);
  }
  return of_node;
}

// The value of a key of /proc/cpuinfo's first processor.
std::string cpuinfo(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos || !absl::StartsWith(line, key)) continue;
    return colon + 2 <= line.size() ? line.substr(colon + 2) : "";
  }
  return "";
}

}  // namespace

Cores available_cores() {
  Cores cores;
  cores.of_node = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  cores.in_affinity = cores_in_affinity(cores.of_node);
  cores.group_quota = control_group_cores();
  cores.usable = cores.in_affinity;
  if (cores.group_quota) {
    const int quota = static_cast<int>(std::floor(*cores.group_quota));
    cores.usable = std::clamp(quota, 1, cores.usable);
  }
  return cores;
}

std::string processor_name() {
  const std::string name = cpuinfo("model name");
  return name.empty() ? "unknown" : name;
}

std::vector<InstructionSet> instruction_sets() {
  // From the kernel, not from cpuid: it leaves out what the system does not save and restore.
  const std::string flags = absl::StrCat(" ", cpuinfo("flags"), " ");
  const auto has = [&](const char* flag) {
    return absl::StrContains(flags, absl::StrCat(" ", flag, " "));
  };
  return {{"AVX2", has("avx2") && has("fma")},
          {"AVX-512", has("avx512f") && has("avx512bw") && has("avx512dq") && has("avx512vl")},
          {"AVX512-BF16", has("avx512_bf16")},
          {"AMX-BF16", has("amx_bf16")}};
}

}  // namespace longhaul::launch
