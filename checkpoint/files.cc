#include "checkpoint/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::checkpoint {
namespace {

namespace fs = std::filesystem;

// What the user can do about a reason, if there is anything to say.
std::string_view fix_for(int reason) {
  switch (reason) {
    case ENOSPC:
    case EDQUOT:
      return ": free some space, keep fewer checkpoints or choose another directory";
    case EFBIG:
      return ": raise the limit on file sizes (ulimit -f) or use more ranks";
    case EACCES:
    case EPERM:
    case EROFS:
      return ": choose a directory that this user may write to";
    case ENOENT:
      return ": if it should be there, all ranks must see the same file system";
    default:
      return "";
  }
}

[[noreturn]] void fail_for(std::string_view action, const std::string& path, int reason) {
  fail(ErrorCode::kCheckpoint,
       absl::StrCat("cannot ", std::string(action), " '", path,
                    "': ", std::generic_category().message(reason), std::string(fix_for(reason))));
}

void sync(int file, const std::string& path) {
  while (::fsync(file) != 0) {
    if (errno != EINTR) fail_for("sync", path, errno);
  }
}

}  // namespace

OutputFile::OutputFile(std::string path) : path_(std::move(path)) {
  file_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (file_ < 0) fail_for("create", path_, errno);
}

OutputFile::~OutputFile() {
  if (file_ >= 0) ::close(file_);
}

void OutputFile::write(std::span<const std::byte> data) {
  LONGHAUL_CHECK(file_ >= 0, path_);
  checksum_.add(data);
  while (!data.empty()) {
    // One call takes at most 2 GiB.
    const size_t size = std::min<size_t>(data.size(), size_t{1} << 30);
    const ssize_t written = ::write(file_, data.data(), size);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail_for("write", path_, errno);
    }
    bytes_ += written;
    data = data.subspan(static_cast<size_t>(written));
  }
}

void OutputFile::finish() {
  LONGHAUL_CHECK(file_ >= 0, path_);
  sync(file_, path_);
  const int file = file_;
  file_ = -1;
  if (::close(file) != 0 && errno != EINTR) fail_for("close", path_, errno);
}

InputFile::InputFile(std::string path) : path_(std::move(path)) {
  file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
  if (file_ < 0) fail_for("open", path_, errno);
  struct stat status {};
  const int failed = ::fstat(file_, &status) != 0 ? errno : 0;
  if (failed != 0 || !S_ISREG(status.st_mode)) {
    ::close(file_);
    if (failed != 0) fail_for("examine", path_, failed);
    fail(ErrorCode::kCheckpoint, absl::StrCat("'", path_, "' is not a file"));
  }
  bytes_ = status.st_size;
}

InputFile::~InputFile() { ::close(file_); }

void InputFile::read(int64_t offset, std::span<std::byte> data) const {
  while (!data.empty()) {
    const size_t size = std::min<size_t>(data.size(), size_t{1} << 30);
    const ssize_t got = ::pread(file_, data.data(), size, offset);
    if (got < 0) {
      if (errno == EINTR) continue;
      fail_for("read", path_, errno);
    }
    if (got == 0) {
      fail(ErrorCode::kCheckpoint, absl::StrCat("'", path_, "' ends at byte ", offset, ", ",
                                                data.size(), " bytes too early: it is truncated"));
    }
    offset += got;
    data = data.subspan(static_cast<size_t>(got));
  }
}

std::string read_file(const std::string& path, int64_t limit) {
  const InputFile file(path);
  if (file.bytes() > limit) {
    fail(ErrorCode::kCheckpoint, absl::StrCat("'", path, "' has ", file.bytes(),
                                              " bytes, more than the ", limit, " it may have"));
  }
  std::string text(static_cast<size_t>(file.bytes()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

bool exists(const std::string& path) {
  std::error_code error;
  const bool found = fs::exists(path, error);
  if (error) fail_for("examine", path, error.value());
  return found;
}

std::vector<std::string> list_folder(const std::string& path) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator it(path, error);
  if (error == std::errc::no_such_file_or_directory) return names;
  if (error) fail_for("list", path, error.value());
  while (it != fs::directory_iterator()) {
    names.push_back(it->path().filename().string());
    it.increment(error);
    if (error) fail_for("list", path, error.value());
  }
  std::sort(names.begin(), names.end());
  return names;
}

void make_folder(const std::string& path) {
  std::error_code error;
  const fs::path folder = fs::absolute(path, error).lexically_normal();
  if (error) fail_for("find", path, error.value());
  if (fs::is_directory(folder, error)) return;
  const fs::path parent =
      folder.has_filename() ? folder.parent_path() : folder.parent_path().parent_path();
  make_folder(parent.string());
  if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST) {
    fail_for("create the folder", path, errno);
  }
  if (!fs::is_directory(folder, error)) fail_for("create the folder", path, ENOTDIR);
  sync_folder(parent.string());
}

void rename_path(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    const int reason = errno;
    fail_for(absl::StrCat("rename to '", to, "' the folder"), from, reason);
  }
}

void remove_tree(const std::string& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) fail_for("remove", path, error.value());
}

void sync_folder(const std::string& path) {
  const int folder = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder < 0) fail_for("open", path, errno);
  int failed = 0;
  while (::fsync(folder) != 0) {
    if (errno == EINTR) continue;
    // Some network file systems refuse to sync folders; their renames are synchronous.
    if (errno != EINVAL && errno != ENOTSUP) failed = errno;
    break;
  }
  ::close(folder);
  if (failed != 0) fail_for("sync", path, failed);
}

}  // namespace longhaul::checkpoint
