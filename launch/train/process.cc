#include "launch/train/process.h"

#include <time.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>

namespace longhaul::launch {

double seconds_since_process_start() {
  // Field 22 of /proc/self/stat, counted after the command name, which may hold anything in
  // parentheses; in clock ticks since boot.
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return 0;
  std::istringstream fields(line.substr(name_end + 1));
  std::string skipped;
  for (int field = 3; field < 22; ++field) fields >> skipped;
  double started = 0;
  fields >> started;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec) -
         started / static_cast<double>(sysconf(_SC_CLK_TCK));
}

}  // namespace longhaul::launch
