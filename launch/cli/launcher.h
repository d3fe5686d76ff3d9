// What the launcher of a job (mpirun, srun) says in the environment, before MPI is initialised.
#pragma once

#include <string>

#include "kernels/core/error.h"

namespace longhaul::launch {

// This process's rank in the job; 0 without a launcher.
int launched_rank();

// Ranks on this node, or 0 if the launcher does not say.
int launched_ranks_on_node();

// One line on stderr in one write, so that the lines of ranks do not mix.
void print_error(const Error& error);

// Prints an error that every rank of the job has found by itself, e.g. in its arguments: rank 0
// does, and the others give it the time, since launchers end the job at the first failure. Returns
// the exit status.
int report_everywhere(const Error& error);

}  // namespace longhaul::launch
