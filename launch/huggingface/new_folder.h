// A folder that appears under its name when all is in it: what is interrupted leaves another name.
#pragma once

#include <string>

namespace longhaul::launch::huggingface {

class NewFolder {
 public:
  // Throws Error(kCheckpoint) unless `path` does not exist, or is an empty folder that can be
  // replaced. What an earlier attempt has left is removed, but not `source`, which is read.
  NewFolder(const std::string& path, const std::string& source);
  ~NewFolder();  // an error leaves nothing; a program that is killed, <path>.partial
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  // To be filled: <path>.partial.
  const std::string& partial() const { return partial_; }
  void finish();

 private:
  std::string path_, partial_;
  bool finished_ = false;
};

}  // namespace longhaul::launch::huggingface
