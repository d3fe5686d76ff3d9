// A folder that appears under its name when all is in it: what is interrupted leaves another name.
#pragma once

#include <string>

namespace longhaul::launch::huggingface {

class NewFolder {
 public:
  // Throws Error(kCheckpoint) unless `path` is an empty folder or does not exist. What an earlier
  // attempt has left is removed.
  explicit NewFolder(const std::string& path);

  // To be filled: <path>.partial.
  const std::string& partial() const { return partial_; }
  void finish();

 private:
  std::string path_, partial_;
};

}  // namespace longhaul::launch::huggingface
