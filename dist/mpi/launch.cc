#include <absl/strings/numbers.h>

#include <cstdlib>

#include "dist/mpi/mpi.h"

namespace longhaul::dist {
namespace {

// Slurm numbers the steps of users from 0; batch scripts and salloc's shells have numbers up here.
constexpr int64_t kFirstSpecialStep = 0xfffffff0;

std::optional<int64_t> number(const char* variable) {
  const char* const text = std::getenv(variable);
  int64_t value = 0;
  if (text == nullptr || !absl::SimpleAtoi(text, &value)) return std::nullopt;
  return value;
}

std::optional<int> count(const char* variable) {
  const auto value = number(variable);
  if (!value) return std::nullopt;
  return static_cast<int>(*value);
}

// Whether this process is a task of srun. A batch script has a SLURM_PROCID too, but no step: with
// one task it is like a shell; with more, srun has been forgotten, which the session then says.
bool is_slurm_task() {
  if (!number("SLURM_PROCID")) return false;
  const auto step = number("SLURM_STEP_ID");
  if (step) return *step < kFirstSpecialStep;
  return number("SLURM_NTASKS").value_or(1) > 1;
}

}  // namespace

Launch detect_launch() {
  Launch launch;
  // mpirun decides over its processes also inside an allocation of Slurm.
  if (const auto size = count("OMPI_COMM_WORLD_SIZE")) {
    launch = {true, "mpirun", size, count("OMPI_COMM_WORLD_LOCAL_RANK").value_or(0)};
  } else if (is_slurm_task()) {
    launch = {true, "srun", count("SLURM_NTASKS"), count("SLURM_LOCALID").value_or(0)};
    launch.process_manager = number("PMIX_RANK") || number("PMI_RANK");
  } else if (number("OMPI_COMM_WORLD_RANK") || number("PMI_RANK") || number("PMIX_RANK")) {
    // The launcher of MPICH or PRRTE.
    launch = {true, "mpirun", count("PMI_SIZE"), count("MPI_LOCALRANKID").value_or(0)};
  }
  return launch;
}

}  // namespace longhaul::dist
