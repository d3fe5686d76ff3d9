// About this process.
#pragma once

namespace longhaul::launch {

// Seconds since the kernel started this process, in steps of its clock tick (10 ms).
double seconds_since_process_start();

}  // namespace longhaul::launch
