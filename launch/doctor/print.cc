#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/doctor/doctor.h"

namespace longhaul::launch {
namespace {

std::string gib(int64_t bytes) {
  return absl::StrFormat("%.1f GiB", static_cast<double>(bytes) / static_cast<double>(1 << 30));
}

std::string line(const std::string& key, const std::string& value) {
  return absl::StrFormat("  %-20s %s\n", key, value);
}

std::string cores_text(const Cores& cores) {
  std::string text = absl::StrCat(cores.usable, " usable (", cores.of_node, " on the node, ",
                                  cores.in_affinity, " in the affinity mask");
  if (cores.group_quota) {
    absl::StrAppend(&text, absl::StrFormat(", control group quota %.2f", *cores.group_quota));
  }
  return text + ")";
}

std::string memory_text(const HostMemory& memory) {
  std::string text =
      absl::StrCat(gib(memory.available_bytes), " available of ", gib(memory.total_bytes));
  if (memory.group_limit_bytes) {
    absl::StrAppend(&text, ", control group limit ", gib(*memory.group_limit_bytes));
  }
  return text;
}

std::string backend_text(const BackendState& state) {
  if (state.kernels == 0) return state.description;
  return absl::StrCat(state.description, ": ", state.runnable, " of ", state.kernels,
                      " kernels can run here", state.why_none.empty() ? "" : ": ", state.why_none);
}

}  // namespace

std::string to_table(const Diagnosis& d) {
  std::string text = "Program\n";
  for (const Version& version : d.versions) text += line(version.of, version.number);
  for (const BackendState& state : d.backends) {
    text += line("backend " + state.device, backend_text(state));
  }
  text += "Machine\n" + line("host", d.host) + line("processor", d.processor) +
          line("cores", cores_text(d.cores));
  std::string sets;
  for (const InstructionSet& set : d.instruction_sets) {
    absl::StrAppend(&sets, sets.empty() ? "" : ", ", set.present ? "" : "no ", set.name);
  }
  text += line("instruction sets", sets) + line("memory", memory_text(d.memory));
  for (const std::string& gpu : d.gpus) text += line("GPU", gpu);
  const std::string shared =
      absl::StrCat(gib(d.shared_memory.free_bytes), " free of ", gib(d.shared_memory.size_bytes));
  text += line("/dev/shm", d.shared_memory.present ? shared : "missing");
  text += "Launch\n" + line("started by", d.launched_by) +
          line("mpirun", d.mpirun.value_or("not in PATH"));
  for (const Finding& finding : d.findings) {
    absl::StrAppend(&text, finding.blocks_training ? "PROBLEM  " : "note     ", finding.what,
                    "\n         fix: ", finding.fix, "\n");
  }
  text += d.can_train() ? "This machine can train.\n" : "This machine cannot train yet.\n";
  return text;
}

std::string to_json(const Diagnosis& d) {
  using nlohmann::json;
  json out;
  for (const Version& version : d.versions) out["versions"][version.of] = version.number;
  out["host"] = d.host;
  out["processor"] = d.processor;
  out["cores"] = {{"usable", d.cores.usable},
                  {"of_node", d.cores.of_node},
                  {"in_affinity", d.cores.in_affinity},
                  {"group_quota", d.cores.group_quota ? json(*d.cores.group_quota) : json()}};
  for (const InstructionSet& set : d.instruction_sets) {
    out["instruction_sets"][set.name] = set.present;
  }
  out["memory"] = {{"total_bytes", d.memory.total_bytes},
                   {"available_bytes", d.memory.available_bytes},
                   {"group_limit_bytes",
                    d.memory.group_limit_bytes ? json(*d.memory.group_limit_bytes) : json()}};
  out["shared_memory"] = {{"present", d.shared_memory.present},
                          {"size_bytes", d.shared_memory.size_bytes},
                          {"free_bytes", d.shared_memory.free_bytes}};
  out["launched_by"] = d.launched_by;
  out["mpirun"] = d.mpirun ? json(*d.mpirun) : json();
  out["gpus"] = d.gpus;
  for (const BackendState& state : d.backends) {
    out["backends"].push_back({{"device", state.device},
                               {"description", state.description},
                               {"kernels", state.kernels},
                               {"runnable", state.runnable},
                               {"why_none", state.why_none}});
  }
  out["findings"] = json::array();
  for (const Finding& finding : d.findings) {
    out["findings"].push_back({{"blocks_training", finding.blocks_training},
                               {"what", finding.what},
                               {"fix", finding.fix}});
  }
  out["can_train"] = d.can_train();
  return out.dump() + "\n";
}

}  // namespace longhaul::launch
