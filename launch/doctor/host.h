// What the machine and the limits of this process offer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace longhaul::launch {

struct Cores {
  int of_node = 1;                    // online
  int in_affinity = 1;                // this process may run on
  std::optional<double> group_quota;  // cgroup CPU limit, in cores
  int usable = 1;                     // the least of these
};
Cores available_cores();

struct HostMemory {
  int64_t total_bytes = 0;
  int64_t available_bytes = 0;
  std::optional<int64_t> group_limit_bytes;  // cgroup
};
HostMemory memory();

// /dev/shm, where MPI libraries keep what goes between ranks of a node.
struct SharedMemory {
  bool present = false;
  int64_t size_bytes = 0;
  int64_t free_bytes = 0;
};
SharedMemory shared_memory();

std::string host_name();
std::string processor_name();

// Instruction sets that kernels make use of, and whether this processor (and the system) has them.
struct InstructionSet {
  std::string name;
  bool present = false;
};
std::vector<InstructionSet> instruction_sets();

// The first line that a program prints, or nullopt if it cannot be run or fails. No shell takes
// part; the program is looked up in PATH.
std::optional<std::string> first_line_of(const std::vector<std::string>& command);

}  // namespace longhaul::launch
