// Runs a function on every rank of the job, however the job was started.
#pragma once

#include <chrono>
#include <functional>

#include "dist/group.h"

namespace longhaul::launch {

// ranks > 0: that many threads of this process; 0: the processes of the MPI launcher that started
// this one, or a single rank without one. Both at once are an Error(kConfig).
//
// Calls `body` once per rank and returns the exit status, on every rank. Errors are printed exactly
// once: a SharedError (see Group::agree) by rank 0; any other by the rank that met it, with its
// number, after which Group::abort ends the other ranks.
int run_ranks(int ranks, std::chrono::milliseconds deadline,
              const std::function<void(dist::Group& world)>& body);

// Throws Error(kConfig) unless 0 (not given) or a number of threads that can be meant.
void check_ranks_option(int64_t ranks);

// Threads a rank may use, so that the ranks of this node share its cores.
int threads_per_rank(int ranks_as_threads);

// Whether the cores of this node are enough for all threads of its ranks at once.
bool enough_cores(int ranks_as_threads, int threads);

}  // namespace longhaul::launch
