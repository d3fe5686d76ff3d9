#include "launch/doctor/host.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>

#include "absl/strings/match.h"
#include "launch/doctor/control_group.h"

extern char** environ;

namespace longhaul::launch {
namespace {

// A value of /proc/meminfo, which is in KiB.
int64_t meminfo_bytes(const std::string& key) {
  std::ifstream file("/proc/meminfo");
  std::string name;
  int64_t kib = 0;
  for (std::string rest; file >> name >> kib; std::getline(file, rest)) {
    if (name == key + ":") return kib * 1024;
  }
  return 0;
}

// Everything the pipe brings, up to a limit; then closes it.
std::string read_all(int fd) {
  std::string text;
  std::array<char, 512> buffer;
  while (true) {
    const ssize_t n = read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    text.append(buffer.data(), static_cast<size_t>(n));
  }
  close(fd);
  return text;
}

}  // namespace

HostMemory memory() {
  return {.total_bytes = meminfo_bytes("MemTotal"),
          .available_bytes = meminfo_bytes("MemAvailable"),
          .group_limit_bytes = control_group_memory_bytes()};
}

SharedMemory shared_memory() {
  struct statvfs info = {};
  if (statvfs("/dev/shm", &info) != 0 || access("/dev/shm", W_OK) != 0) return {};
  const auto block = static_cast<int64_t>(info.f_frsize);
  return {.present = true,
          .size_bytes = block * static_cast<int64_t>(info.f_blocks),
          .free_bytes = block * static_cast<int64_t>(info.f_bavail)};
}

std::string host_name() {
  std::array<char, 256> name = {};
  return gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown";
}

std::optional<std::string> first_line_of(const std::vector<std::string>& command) {
  std::array<int, 2> ends = {};
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return std::nullopt;
  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_adddup2(&files, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&files, STDERR_FILENO, "/dev/null", O_WRONLY, 0);

  std::vector<std::string> words = command;
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  pid_t child = -1;
  const int failed = posix_spawnp(&child, arguments[0], &files, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  close(ends[1]);
  const std::string text = read_all(ends[0]);
  if (failed != 0) return std::nullopt;
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return std::nullopt;
  return text.substr(0, text.find('\n'));
}

}  // namespace longhaul::launch
