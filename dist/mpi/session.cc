#include <absl/strings/str_cat.h>
#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <thread>

#include "dist/mpi/mpi.h"
#include "dist/mpi/transport.h"
#include "kernels/core/error.h"

namespace longhaul::dist {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// With an error all ranks come to the end together (Group::agree) or not at all.
constexpr milliseconds kEndAfterError{5000};

// Why the world is not what was asked for, or "".
std::string mismatch(const Launch& launch, int world_size) {
  if (!launch.expected_ranks || *launch.expected_ranks == world_size) return "";
  const int expected = *launch.expected_ranks;
  const std::string library = MpiSession::library_version();
  if (launch.launcher == "srun") {
    if (world_size == 1) {
      return absl::StrCat("SLURM_NTASKS is ", expected,
                          " but this process is alone in its MPI world: start with srun, and with "
                          "the process manager that ",
                          library, " was built for (srun --mpi=pmix; srun --mpi=list shows all)");
    }
    return absl::StrCat("MPI has ", world_size, " ranks but SLURM_NTASKS is ", expected,
                        ": start as many processes as tasks (srun without -n, or change --ntasks)");
  }
  return absl::StrCat("MPI has ", world_size, " ranks but the launcher started ", expected,
                      ": use the mpirun that belongs to ", library);
}

// Whether all ranks have come here within `limit`.
bool everyone_arrives(milliseconds limit) {
  MPI_Request request = MPI_REQUEST_NULL;
  if (MPI_Ibarrier(MPI_COMM_WORLD, &request) != MPI_SUCCESS) return false;
  const auto end = steady_clock::now() + limit;
  int done = 0;
  while (MPI_Test(&request, &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && done == 0) {
    if (steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  return done != 0;
}

}  // namespace

MpiSession::MpiSession(const Launch& launch, milliseconds deadline) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  LONGHAUL_CHECK(initialized == 0, "one MpiSession per process");
  // Open MPI would end the process in MPI_Init, with a screenful about its own build.
  if (!launch.process_manager && launch.expected_ranks.value_or(1) > 1) {
    fail(ErrorCode::kEnvironment, mismatch(launch, 1));
  }
  int provided = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided) != MPI_SUCCESS) {
    fail(ErrorCode::kEnvironment, "MPI does not start");
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  int rank = 0, size = 1;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);

  std::string reason = mismatch(launch, size);
  if (provided < MPI_THREAD_FUNNELED) {
    reason = absl::StrCat(library_version(), " was built without threads (MPI_THREAD_FUNNELED)");
  }
  if (!reason.empty()) {
    MPI_Finalize();
    fail(ErrorCode::kEnvironment, reason);
  }
  auto job = std::make_shared<Job>();
  job->world_rank = rank;
  job->world_size = size;
  job->deadline = deadline;
  world_ = std::make_unique<Group>(mpi::make_transport(MPI_COMM_WORLD), std::move(job));
}

MpiSession::~MpiSession() {
  const int rank = world_->rank();
  const milliseconds deadline = world_->job().deadline;
  const bool failing = std::uncaught_exceptions() > 0;
  const bool alone = world_->size() == 1;
  if (world_->job().communication_failed && !alone) {
    // MPI may still hold buffers that are gone: it must not be called for anything else.
    std::fprintf(stderr, "longhaul: rank %d: communication has failed; ending all ranks\n", rank);
    std::fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(ErrorCode::kCommunication));
  }
  world_.reset();
  const milliseconds limit = failing ? std::min(deadline, kEndAfterError) : deadline;
  if (!everyone_arrives(limit)) {
    std::fprintf(stderr,
                 "longhaul: rank %d: the other ranks have not come to the end of the job within "
                 "%.3g s; ending it on all of them\n",
                 rank, std::chrono::duration<double>(limit).count());
    std::fflush(stderr);
    MPI_Abort(MPI_COMM_WORLD, static_cast<int>(ErrorCode::kCommunication));
  }
  MPI_Finalize();
}

Group& MpiSession::world() { return *world_; }

std::string MpiSession::library_version() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING];
  int length = 0;
  MPI_Get_library_version(text, &length);
  // "Open MPI v4.1.4, package: ...": the rest is about how it was built.
  const std::string version(text, static_cast<size_t>(length));
  return version.substr(0, version.find_first_of(",\n"));
}

}  // namespace longhaul::dist
