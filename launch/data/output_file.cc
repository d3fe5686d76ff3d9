#include "launch/data/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

constexpr size_t kBuffer = size_t{1} << 20;

}  // namespace

OutputFile::OutputFile(std::string path, int64_t kept)
    : path_(std::move(path)), partial_(path_ + ".partial") {
  std::error_code error;
  const auto folder = std::filesystem::path(path_).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, error);
  if (error) fail_for("create the folder of", error.value());
  file_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
  if (file_ < 0) fail_for("create", errno);
  if (::ftruncate(file_, kept) != 0 || ::lseek(file_, kept, SEEK_SET) != kept) {
    fail_for("truncate", errno);
  }
  buffer_.reserve(kBuffer);
}

OutputFile::~OutputFile() {
  if (file_ >= 0) ::close(file_);
  if (!committed_ && !left_) ::unlink(partial_.c_str());
}

void OutputFile::write(std::span<const std::byte> data) {
  buffer_.insert(buffer_.end(), data.begin(), data.end());
  if (buffer_.size() >= kBuffer) flush();
}

void OutputFile::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t written = ::write(file_, buffer_.data() + done, buffer_.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail_for("write", errno);
    done += static_cast<size_t>(written);
  }
  buffer_.clear();
}

void OutputFile::sync() {
  flush();
  while (::fsync(file_) != 0) {
    if (errno != EINTR) fail_for("sync", errno);
  }
}

void OutputFile::commit() {
  sync();
  if (::rename(partial_.c_str(), path_.c_str()) != 0) fail_for("rename", errno);
  committed_ = true;
}

void OutputFile::fail_for(std::string_view action, int reason) const {
  fail(ErrorCode::kEnvironment,
       absl::StrCat("cannot ", std::string(action), " '", partial_,
                    "': ", std::generic_category().message(reason),
                    ": choose an output path with enough space that this user may write to"));
}

}  // namespace longhaul::launch
