// What `longhaul doctor` finds out: the program, the machine, and whether it can train.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/doctor/host.h"

namespace longhaul::launch {

struct Version {
  std::string of;      // "MPI library"
  std::string number;  // what it says of itself
};

struct BackendState {
  std::string device;       // "cpu"
  std::string description;  // of the backend, as in kernels/backend.h
  int kernels = 0;          // rows of its tables
  int runnable = 0;         // of these, on this machine
  std::string why_none{};   // if none is runnable: what is missing
};

// Something that is missing or too small.
struct Finding {
  bool blocks_training = false;
  std::string what;
  std::string fix;
};

struct Diagnosis {
  std::vector<Version> versions;
  std::string host;
  std::string processor;
  Cores cores;
  std::vector<InstructionSet> instruction_sets;
  HostMemory memory;
  SharedMemory shared_memory;
  std::string launched_by;            // "mpirun (rank 0 of 4)" or "a shell"
  std::optional<std::string> mpirun;  // the first line of mpirun --version
  std::vector<std::string> gpus{};    // "NVIDIA H200, compute capability 9.0, 139.8 GiB"
  std::vector<BackendState> backends;
  std::vector<Finding> findings;

  bool can_train() const;
};

Diagnosis diagnose();

// Fills `findings` from the rest: pure, so that machines that are not at hand can be tested.
std::vector<Finding> judge(const Diagnosis& diagnosis);

std::string to_table(const Diagnosis& diagnosis);
std::string to_json(const Diagnosis& diagnosis);  // one object, one line

}  // namespace longhaul::launch
