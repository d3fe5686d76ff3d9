#pragma once

#include "parallel/server/schedule.h"

namespace longhaul::parallel {

// Shares each server's tasks on rows of others out over Servers::nano_batches rounds, or fewer
// where the limit of buffers leaves no room to align as many slots and ranges of rows.
void set_rounds(const Problem& problem, Schedule& schedule);

}  // namespace longhaul::parallel
