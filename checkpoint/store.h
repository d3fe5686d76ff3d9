// The folders of a checkpoint directory: names, what counts as a checkpoint, and the steps by which
// one becomes visible or goes away. Who may be killed where: FORMAT.md.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::checkpoint {

inline constexpr char kManifestFile[] = "manifest.pb";
inline constexpr char kMarkerFile[] = "COMPLETE";

// Called before and after whatever changes the disk, for tests: it may throw or kill the process.
using Hook = std::function<void(std::string_view event)>;

// "step-00001200"
std::string step_name(int64_t step);
std::string shard_name(int rank, int ranks);

// The checksum in a folder's COMPLETE; empty if it has none that is whole.
std::optional<std::string> marked_checksum(const std::string& folder);

struct Stored {
  int64_t step = 0;
  std::string path;
};

class Store {
 public:
  explicit Store(std::string directory) : directory_(std::move(directory)) {}

  // Checkpoints that count, by ascending step.
  std::vector<Stored> complete() const;

  // Repairs or removes what killed saves left behind.
  void recover() const;

  // The folder to write a checkpoint into. create() makes it, empty, and the directory.
  std::string partial(int64_t step) const;
  void create(int64_t step) const;

  // Everything is in partial(step) and synced: makes it the checkpoint of `step`, in place of any
  // there was.
  void publish(int64_t step, uint64_t manifest_checksum, const Hook& hook) const;

  // Removes the oldest beyond `keep` (0: none), but never that of `step`.
  void prune(int64_t step, int keep, const Hook& hook) const;

 private:
  std::string final_path(int64_t step) const;
  std::string replaced(int64_t step) const;
  void remove(int64_t step, const std::string& path, const Hook& hook) const;

  std::string directory_;
};

}  // namespace longhaul::checkpoint
