// Ranks as processes started by mpirun or srun.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "dist/group.h"

namespace longhaul::dist {

// How this process was started, read from the environment without initialising MPI.
struct Launch {
  bool under_launcher = false;        // an MPI launcher or srun set its variables
  std::string launcher;               // "mpirun", "srun" or ""
  std::optional<int> expected_ranks;  // SLURM_NTASKS or OMPI_COMM_WORLD_SIZE
  int local_rank = 0;                 // rank among those of this node
  bool process_manager = true;        // whether MPI's processes can find each other
};
Launch detect_launch();

// Initialises MPI for the life of the object (funnelled: one thread of the rank communicates).
class MpiSession {
 public:
  // Throws Error(kEnvironment) if MPI's world differs from launch.expected_ranks, saying how to
  // start the job instead.
  MpiSession(const Launch& launch, std::chrono::milliseconds deadline);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  Group& world();
  static std::string library_version();

 private:
  std::unique_ptr<Group> world_;
};

}  // namespace longhaul::dist
