// The benchmarks of single operations and of attention over ranks, each in a file of its own: rows
// of bench_commands().
#pragma once

#include "launch/cli/command.h"

namespace longhaul::launch {

Action add_attention_bench(CLI::App& app);
Action add_auto_bench(CLI::App& app);
Action add_cad_bench(CLI::App& app);
Action add_comm_bench(CLI::App& app);
Action add_gemm_bench(CLI::App& app);
Action add_layout_bench(CLI::App& app);
Action add_linear_bench(CLI::App& app);
Action add_pointwise_bench(CLI::App& app);
Action add_scan_bench(CLI::App& app);
Action add_sequence_bench(CLI::App& app);

}  // namespace longhaul::launch
