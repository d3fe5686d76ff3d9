#include "launch/cli/launcher.h"

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <initializer_list>
#include <thread>

#include "absl/strings/str_cat.h"
#include "dist/mpi/mpi.h"

namespace longhaul::launch {
namespace {

// The leading number of the first variable that is set: Slurm writes "4(x2),3".
int first_number(std::initializer_list<const char*> variables, int otherwise) {
  for (const char* variable : variables) {
    const char* text = std::getenv(variable);
    if (text == nullptr) continue;
    char* end = nullptr;
    const int64_t value = std::strtoll(text, &end, 10);
    if (end != text && value >= 0 && value < (1 << 30)) return static_cast<int>(value);
  }
  return otherwise;
}

}  // namespace

int launched_rank() {
  if (!dist::detect_launch().under_launcher) return 0;
  return first_number({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID"}, 0);
}

int launched_ranks_on_node() {
  if (!dist::detect_launch().under_launcher) return 0;
  return first_number(
      {"OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"}, 0);
}

void print_error(const Error& error) {
  // A run that a signal stopped after saving has not failed.
  const bool stopped = error.code() == ErrorCode::kInterrupted;
  const std::string line = absl::StrCat("longhaul: ", stopped ? "" : "error: ", error.what(), "\n");
  for (size_t done = 0; done < line.size();) {
    const ssize_t n = ::write(STDERR_FILENO, line.data() + done, line.size() - done);
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

int report_everywhere(const Error& error) {
  if (launched_rank() == 0) {
    print_error(error);
  } else {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
  return error.exit_status();
}

}  // namespace longhaul::launch
