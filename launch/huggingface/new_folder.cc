#include "launch/huggingface/new_folder.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "checkpoint/files.h"
#include "kernels/core/error.h"

namespace longhaul::launch::huggingface {

namespace {

namespace fs = std::filesystem;

// Without a slash at its end, which would make <path>.partial lie within.
std::string named(const std::string& path) {
  const fs::path given = path;
  return given.filename().empty() ? given.parent_path().string() : path;
}

bool lies_in(const std::string& path, const std::string& folder) {
  std::error_code error;
  const fs::path inner = fs::canonical(path, error);
  if (error) return false;
  const fs::path outer = fs::canonical(folder, error);
  if (error) return false;
  return std::ranges::mismatch(outer, inner).in1 == outer.end();
}

}  // namespace

NewFolder::NewFolder(const std::string& path, const std::string& source)
    : path_(named(path)), partial_(path_ + ".partial") {
  if (!checkpoint::list_folder(path_).empty()) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("'", path_, "' is not empty; choose a folder that does not exist yet"));
  }
  if (lies_in(source, partial_)) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("'", path_, "' would be built in '", partial_, "', where '", source,
                      "' is to be read; choose another name"));
  }
  // An empty folder makes room now: that one cannot (a mount, a link) would be found when all the
  // work is done.
  if (::rmdir(path_.c_str()) != 0 && (errno != ENOENT || path_.empty())) {
    fail(ErrorCode::kCheckpoint,
         absl::StrCat("'", path_, "' cannot be replaced (", std::generic_category().message(errno),
                      "); choose a folder that does not exist yet"));
  }
  std::error_code ignored;
  if (fs::is_directory(partial_, ignored)) checkpoint::remove_tree(partial_);
  checkpoint::make_folder(partial_);
}

NewFolder::~NewFolder() {
  std::error_code ignored;
  if (!finished_) fs::remove_all(partial_, ignored);
}

void NewFolder::finish() {
  checkpoint::sync_folder(partial_);
  checkpoint::rename_path(partial_, path_);
  finished_ = true;
  const std::string above = fs::path(path_).parent_path().string();
  checkpoint::sync_folder(above.empty() ? "." : above);
}

}  // namespace longhaul::launch::huggingface
