#include "launch/huggingface/new_folder.h"

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "checkpoint/files.h"
#include "kernels/core/error.h"

namespace longhaul::launch::huggingface {

namespace {

// Without a slash at its end, which would make <path>.partial lie within.
std::string named(const std::string& path) {
  const std::filesystem::path given = path;
  return given.filename().empty() ? given.parent_path().string() : path;
}

}  // namespace

NewFolder::NewFolder(const std::string& path) : path_(named(path)), partial_(path_ + ".partial") {
  if (!checkpoint::list_folder(path_).empty()) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("'", path_, "' is not empty; choose a folder that does not exist yet"));
  }
  checkpoint::remove_tree(partial_);
  checkpoint::make_folder(partial_);
}

void NewFolder::finish() {
  checkpoint::sync_folder(partial_);
  checkpoint::rename_path(partial_, path_);
  const std::string above = std::filesystem::path(path_).parent_path().string();
  checkpoint::sync_folder(above.empty() ? "." : above);
}

}  // namespace longhaul::launch::huggingface
