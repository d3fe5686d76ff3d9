#include "launch/cli/ranks.h"

#include <algorithm>
#include <exception>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "dist/local/local.h"
#include "dist/mpi/mpi.h"
#include "launch/cli/launcher.h"
#include "launch/doctor/host.h"

namespace longhaul::launch {
namespace {

constexpr int64_t kMostThreadRanks = 1024;

// What to print about an error that one rank alone met.
Error with_rank(const Error& error, int rank, int size) {
  // Errors of waits already begin with where the rank was.
  if (size == 1 || absl::StartsWith(error.what(), "rank ")) return error;
  return Error(error.code(), absl::StrCat("rank ", rank, ": ", error.what()));
}

int run_threads(int ranks, std::chrono::milliseconds deadline,
                const std::function<void(dist::Group& world)>& body) {
  const auto error = attempt([&] {
    dist::run_local(ranks, deadline, [&](dist::Group& world) {
      try {
        body(world);
      } catch (const SharedError&) {
        throw;
      } catch (const Error& own) {
        // Left as they are: run_local tells causes from consequences.
        if (own.code() == ErrorCode::kCommunication) throw;
        throw with_rank(own, world.rank(), world.size());
      }
    });
  });
  if (!error) return 0;
  print_error(*error);
  return error->exit_status();
}

int run_processes(const dist::Launch& launch, std::chrono::milliseconds deadline,
                  const std::function<void(dist::Group& world)>& body) {
  std::optional<dist::MpiSession> session;
  if (const auto error = attempt([&] { session.emplace(launch, deadline); })) {
    return report_everywhere(*error);
  }
  dist::Group& world = session->world();
  std::optional<Error> shared;
  const auto own = attempt([&] {
    try {
      body(world);
    } catch (const SharedError& error) {
      shared = error;
    }
  });
  if (shared) {
    // Printed before the session ends, in which all ranks wait for each other.
    if (world.rank() == 0) print_error(*shared);
    return shared->exit_status();
  }
  if (own) {
    if (world.size() == 1) {
      print_error(*own);
    } else {
      const Error named = with_rank(*own, world.rank(), world.size());
      world.abort(named.exit_status(), named.what());  // prints it
    }
    return own->exit_status();
  }
  return 0;
}

}  // namespace

void check_ranks_option(int64_t ranks) {
  if (ranks < 1 || ranks > kMostThreadRanks) {
    fail(ErrorCode::kConfig, absl::StrCat("--ranks ", ranks, ": ranks as threads are 1 to ",
                                          kMostThreadRanks, "; for more, use mpirun or srun"));
  }
}

int run_ranks(int ranks, std::chrono::milliseconds deadline,
              const std::function<void(dist::Group& world)>& body) {
  const dist::Launch launch = dist::detect_launch();
  if (ranks > 0 && launch.under_launcher) {
    return report_everywhere(
        Error(ErrorCode::kConfig,
              absl::StrCat("--ranks ", ranks, " starts ranks as threads, but ", launch.launcher,
                           " has started ranks as processes; leave out one of the two")));
  }
  if (launch.under_launcher) return run_processes(launch, deadline, body);
  return run_threads(std::max(ranks, 1), deadline, body);
}

int threads_per_rank(int ranks_as_threads) {
  const Cores cores = available_cores();
  if (ranks_as_threads > 0) return std::max(1, cores.usable / ranks_as_threads);
  const int here = std::max(1, launched_ranks_on_node());
  // A launcher may bind each rank to cores of its own, or many ranks to the same ones.
  return std::max(1, std::min(cores.usable, cores.of_node / here));
}

bool enough_cores(int ranks_as_threads, int threads) {
  const Cores cores = available_cores();
  if (ranks_as_threads > 0) return ranks_as_threads * threads <= cores.usable;
  return threads <= cores.usable &&
         std::max(1, launched_ranks_on_node()) * threads <= cores.of_node;
}

}  // namespace longhaul::launch
