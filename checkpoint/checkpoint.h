// Saving and loading training state; bytes on disk: checkpoint/FORMAT.md.
//
// A checkpoint is a folder `step-00001200` below the run's checkpoint directory. It is written
// aside, synced, renamed, and completed by a marker: it exists whole or not at all. It can be
// loaded on any number of ranks.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "checkpoint/state.h"
#include "dist/group.h"

namespace longhaul::checkpoint {

struct Info {
  int64_t step = 0;     // optimizer steps done
  int64_t samples = 0;  // training samples consumed: the data position
  // What must be equal for the state to fit, by name: model sizes, dtype. Compared on load.
  std::map<std::string, std::string> model;
  // The resolved configuration of the run that saved it, in text format; for people.
  std::string config;
  // There is no optimizer's state: of an imported model. Parameters may be of any floating type.
  bool weights_only = false;
};

// Collective. Writes <directory>/step-NNNNNNNN from all ranks' slices (each element once), then
// deletes the oldest complete checkpoints beyond `keep` (0: keep all). Throws the same
// Error(kCheckpoint) on every rank if any rank failed, e.g. for a full disk; whatever existed
// before is untouched then and no partial file stays.
void save(dist::Group& world, const std::string& directory, const Info& info, const State& state,
          int keep);

// Path of the newest complete checkpoint below `directory`, if any. Removes nothing.
std::optional<std::string> latest(const std::string& directory);

// Reads the manifest of one checkpoint folder. Throws Error(kCheckpoint).
Info read_info(const std::string& path);

// Collective. Fills every slice of `state` from the checkpoint, whatever ranks wrote it. Throws
// Error(kCheckpoint), the same on every rank, if a tensor is missing, has another shape or dtype,
// if `model` differs (naming the field and both values), or if a file is damaged.
Info load(dist::Group& world, const std::string& path,
          const std::map<std::string, std::string>& model, const State& state);

}  // namespace longhaul::checkpoint
