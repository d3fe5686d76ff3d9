#include "launch/doctor/doctor.h"

#include <google/protobuf/stubs/common.h>

#include <algorithm>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "dist/mpi/mpi.h"
#include "dist/nccl/nccl.h"
#include "kernels/backend.h"
#include "kernels/core/cuda_runtime.h"
#include "launch/cli/command.h"
#include "launch/cli/launcher.h"

namespace longhaul::launch {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
// What the quickstart takes, with room; larger models say what they need when they start.
constexpr int64_t kLeastMemory = 1024 * kMiB;
constexpr int64_t kLeastSharedMemory = 32 * kMiB;

std::vector<Version> versions() {
  std::vector<Version> all{
      {"longhaul", std::string(version())},
      {"MPI library", dist::MpiSession::library_version()},
      {"Protobuf", google::protobuf::internal::VersionString(GOOGLE_PROTOBUF_VERSION)}};
  if (const std::string cuda = cuda::versions(); !cuda.empty()) all.push_back({"CUDA", cuda});
  if (const std::string nccl = dist::nccl_version(); !nccl.empty()) all.push_back({"NCCL", nccl});
  return all;
}

std::vector<std::string> gpus() {
  std::vector<std::string> all;
  for (int index = 0; index < cuda::device_count(); ++index) {
    const cuda::DeviceInfo info = cuda::device_info(index);
    constexpr double kGiB = 1 << 30;
    all.push_back(absl::StrFormat("%s, compute capability %d.%d, %.1f GiB", info.name, info.major,
                                  info.minor, static_cast<double>(info.memory_bytes) / kGiB));
  }
  return all;
}

template <class Kernel>
void count(std::span<const Kernel> table, BackendState& state) {
  state.kernels += static_cast<int>(table.size());
  state.runnable += static_cast<int>(
      std::count_if(table.begin(), table.end(), [](const Kernel& row) { return row.available(); }));
}

BackendState state_of(const kernels::Backend& backend) {
  BackendState state{.device = backend.device == DeviceKind::kCpu ? "cpu" : "cuda",
                     .description = std::string(backend.description)};
  count(backend.attention, state);
  count(backend.attention_sink, state);
  count(backend.linear_attention, state);
  count(backend.gemm, state);
  count(backend.rms_norm, state);
  count(backend.rope, state);
  count(backend.lrpe, state);
  count(backend.gated_unit, state);
  count(backend.activation, state);
  count(backend.decay_gate, state);
  count(backend.embedding, state);
  count(backend.linear_cross_entropy, state);
  count(backend.adamw, state);
  if (state.runnable == 0 && backend.device == DeviceKind::kCuda) {
    state.why_none = cuda::why_no_device();
  }
  return state;
}

std::string launched_by() {
  const dist::Launch launch = dist::detect_launch();
  if (!launch.under_launcher) return "a shell";
  return absl::StrCat(launch.launcher, " (rank ", launched_rank(),
                      launch.expected_ranks ? absl::StrCat(" of ", *launch.expected_ranks) : "",
                      ")");
}

}  // namespace

bool Diagnosis::can_train() const {
  return std::none_of(findings.begin(), findings.end(),
                      [](const Finding& finding) { return finding.blocks_training; });
}

std::vector<Finding> judge(const Diagnosis& d) {
  std::vector<Finding> findings;
  const bool runnable = std::any_of(d.backends.begin(), d.backends.end(),
                                    [](const BackendState& state) { return state.runnable > 0; });
  if (!runnable) {
    findings.push_back({true, "none of this binary's kernels can run on this machine",
                        "build the program here: cmake --preset release && cmake --build "
                        "--preset release"});
  }
  const int64_t limit = d.memory.group_limit_bytes.value_or(d.memory.available_bytes);
  const int64_t memory = std::min(limit, d.memory.available_bytes);
  if (memory < kLeastMemory) {
    findings.push_back({true,
                        absl::StrFormat("%d MiB of memory are available; the smallest preset "
                                        "needs %d MiB",
                                        memory / kMiB, kLeastMemory / kMiB),
                        "end other programs or raise the control group's limit"});
  }
  if (!d.shared_memory.present) {
    findings.push_back({false,
                        "/dev/shm is missing or not writable: Open MPI keeps its messages between "
                        "ranks of a node there, or else in slower files",
                        "mount it: mount -t tmpfs tmpfs /dev/shm"});
  } else if (d.shared_memory.free_bytes < kLeastSharedMemory) {
    findings.push_back({false,
                        absl::StrFormat("/dev/shm has %d MiB free; Open MPI takes some MiB of it "
                                        "for each rank",
                                        d.shared_memory.free_bytes / kMiB),
                        "enlarge it: mount -o remount,size=1G /dev/shm (Docker: --shm-size=1g)"});
  }
  if (!d.mpirun) {
    findings.push_back({false, "mpirun is not in PATH: ranks can only be threads (--ranks N)",
                        "install openmpi-bin: ./launch/setup.sh"});
  }
  const bool avx2 =
      std::any_of(d.instruction_sets.begin(), d.instruction_sets.end(),
                  [](const InstructionSet& set) { return set.name == "AVX2" && set.present; });
  if (!avx2) {
    findings.push_back({false, "the processor has no AVX2: expect slow training",
                        "use a machine with AVX2 or AVX-512"});
  }
  return findings;
}

Diagnosis diagnose() {
  Diagnosis d;
  d.versions = versions();
  d.host = host_name();
  d.processor = processor_name();
  d.cores = available_cores();
  d.instruction_sets = instruction_sets();
  d.memory = memory();
  d.shared_memory = shared_memory();
  d.launched_by = launched_by();
  d.mpirun = first_line_of({"mpirun", "--version"});
  d.gpus = gpus();
  d.backends = {state_of(kernels::cpu_backend()), state_of(kernels::cuda_backend())};
  d.findings = judge(d);
  return d;
}

}  // namespace longhaul::launch
