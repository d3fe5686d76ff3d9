#include "launch/doctor/control_group.h"

#include <algorithm>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"

namespace longhaul::launch {
namespace {

// Folders of this process's group for a controller, from its own up to the root: a limit of any of
// them counts. `controller` is empty for version 2.
std::vector<std::string> folders(const std::string& controller) {
  std::vector<std::string> found;
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::vector<std::string> controllers = absl::StrSplit(parts[1], ',');
    if (std::find(controllers.begin(), controllers.end(), controller) == controllers.end())
      continue;
    const std::string root = controller.empty() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/" + controller;
    for (std::string path = parts[2]; !path.empty() && path != "/";
         path = path.substr(0, path.rfind('/'))) {
      found.push_back(root + path);
    }
    found.push_back(root);
  }
  return found;
}

// The smallest of the limits that `read` finds in the folders.
template <class T>
std::optional<T> least(const std::vector<std::string>& where,
                       const std::function<std::optional<T>(const std::string&)>& read) {
  std::optional<T> result;
  for (const std::string& folder : where) {
    const std::optional<T> limit = read(folder);
    if (limit && (!result || *limit < *result)) result = limit;
  }
  return result;
}

std::optional<double> number_in(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  if (file >> value) return value;
  return std::nullopt;
}

// Version 2: "max 100000" or "200000 100000" (quota, period).
std::optional<double> cores_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && quota > 0 && period > 0) return quota / period;
  return std::nullopt;
}

std::optional<double> cores_v1(const std::string& folder) {
  const auto quota = number_in(folder + "/cpu.cfs_quota_us");
  const auto period = number_in(folder + "/cpu.cfs_period_us");
  if (quota && period && *quota > 0 && *period > 0) return *quota / *period;
  return std::nullopt;
}

std::optional<int64_t> bytes_in(const std::string& path) {
  const auto bytes = number_in(path);
  // Version 1 writes "no limit" as a number near 2^63.
  if (!bytes || *bytes <= 0 || *bytes > 1e18) return std::nullopt;
  return static_cast<int64_t>(*bytes);
}

}  // namespace

std::optional<double> control_group_cores() {
  if (const auto v2 = least<double>(folders(""), cores_v2)) return v2;
  return least<double>(folders("cpu"), cores_v1);
}

std::optional<int64_t> control_group_memory_bytes() {
  const auto v2 = least<int64_t>(
      folders(""), [](const std::string& folder) { return bytes_in(folder + "/memory.max"); });
  if (v2) return v2;
  return least<int64_t>(folders("memory"), [](const std::string& folder) {
    return bytes_in(folder + "/memory.limit_in_bytes");
  });
}

}  // namespace longhaul::launch
