#include "launch/data/token_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

constexpr std::string_view kMagic("MMIDIDX\0\0", 9);
constexpr int64_t kHeader = 9 + 8 + 1 + 8 + 8;
constexpr uint8_t kInt32 = 4, kUint16 = 8;

[[noreturn]] void bad(const std::string& path, const std::string& why) {
  fail(ErrorCode::kData, absl::StrCat("'", path, "' ", why));
}

constexpr char kMakeAgain[] = ": make it again with `longhaul data prepare`";

}  // namespace

class TokenFile::Mapping {
 public:
  explicit Mapping(const std::string& path) : path_(path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) {
      const std::string reason = std::generic_category().message(errno);
      bad(path, absl::StrCat("cannot be opened: ", reason,
                             "; a corpus is named by its prefix, without .bin or .idx, and made "
                             "by `longhaul data prepare`"));
    }
    struct stat status {};
    int failed = ::fstat(file, &status) != 0 ? errno : 0;
    if (failed == 0 && !S_ISREG(status.st_mode)) failed = EISDIR;
    bytes_ = failed == 0 ? status.st_size : 0;
    if (bytes_ > 0) {
      data_ = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ, MAP_SHARED, file, 0);
      if (data_ == MAP_FAILED) failed = errno;
    }
    ::close(file);
    if (failed != 0) {
      bad(path, absl::StrCat("cannot be mapped: ", std::generic_category().message(failed)));
    }
  }
  ~Mapping() {
    if (bytes_ > 0) ::munmap(data_, static_cast<size_t>(bytes_));
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }
  const char* at(int64_t offset) const { return static_cast<const char*>(data_) + offset; }
  // Nothing in the index is aligned.
  template <class T>
  T get(int64_t offset) const {
    T value;
    std::memcpy(&value, at(offset), sizeof(T));
    return value;
  }

 private:
  std::string path_;
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

TokenFile TokenFile::open(const std::string& prefix) {
  TokenFile file;
  file.prefix_ = prefix;
  file.idx_ = std::make_shared<const Mapping>(prefix + ".idx");
  file.bin_ = std::make_shared<const Mapping>(prefix + ".bin");
  file.check_index();
  if (const std::string mask = prefix + ".mask"; ::access(mask.c_str(), F_OK) == 0) {
    file.mask_ = std::make_shared<const Mapping>(mask);
    if (file.mask_->bytes() != file.tokens_) {
      bad(mask, absl::StrCat("has ", file.mask_->bytes(), " bytes for ", file.tokens_,
                             " tokens: it belongs to another corpus", kMakeAgain,
                             ", or remove it to learn all tokens"));
    }
  }
  return file;
}

// Everything that reading relies on later is verified here, once.
void TokenFile::check_index() {
  const Mapping& idx = *idx_;
  if (idx.bytes() < kHeader || std::memcmp(idx.at(0), kMagic.data(), kMagic.size()) != 0) {
    bad(idx.path(), "is no index of a token file (it does not begin with MMIDIDX)");
  }
  if (const auto version = idx.get<uint64_t>(9); version != 1) {
    bad(idx.path(), absl::StrCat("has version ", version, " of the format; only 1 is known"));
  }
  const auto type = idx.get<uint8_t>(17);
  if (type != kInt32 && type != kUint16) {
    bad(idx.path(), absl::StrCat("has tokens of type ", static_cast<int>(type),
                                 "; only 4 (int32) and 8 (uint16) can be read"));
  }
  bytes_per_token_ = type == kInt32 ? 4 : 2;
  const auto sequences = idx.get<uint64_t>(18), entries = idx.get<uint64_t>(26);
  // Compared in a way that does not overflow: 12 bytes a sequence, 8 a document entry.
  const auto left = static_cast<uint64_t>(idx.bytes() - kHeader);
  if (sequences > left / 12 || entries > left / 8 || 12 * sequences + 8 * entries != left) {
    bad(idx.path(), absl::StrCat("has ", idx.bytes(), " bytes, which do not fit its ", sequences,
                                 " sequences and ", entries,
                                 " document entries: it is truncated or damaged", kMakeAgain));
  }
  if (entries == 0) bad(idx.path(), "has no document index");
  sequences_ = static_cast<int64_t>(sequences);
  documents_ = static_cast<int64_t>(entries) - 1;

  const int64_t offsets = kHeader + 4 * sequences_;
  int64_t end = 0;  // bytes
  for (int64_t i = 0; i < sequences_; ++i) {
    const int64_t length = idx.get<int32_t>(kHeader + 4 * i);
    const int64_t offset = idx.get<int64_t>(offsets + 8 * i);
    if (length < 0 || offset != end) {
      bad(idx.path(), absl::StrCat("is inconsistent: sequence ", i, " has ", length,
                                   " tokens at byte ", offset, ", expected at ", end, kMakeAgain));
    }
    end += length * bytes_per_token_;
  }
  if (end != bin_->bytes()) {
    bad(bin_->path(), absl::StrCat("has ", bin_->bytes(), " bytes, but its index says ", end,
                                   bin_->bytes() < end ? ": it is truncated" : "", kMakeAgain));
  }
  tokens_ = end / bytes_per_token_;

  const int64_t document_index = offsets + 8 * sequences_;
  int64_t previous = 0;
  for (int64_t i = 0; i <= documents_; ++i) {
    const int64_t sequence = idx.get<int64_t>(document_index + 8 * i);
    const bool right = i == 0            ? sequence == 0
                       : i == documents_ ? sequence == sequences_
                                         : sequence >= previous && sequence <= sequences_;
    if (!right) {
      bad(idx.path(),
          absl::StrCat("is inconsistent: document ", i, " of ", documents_, " begins at sequence ",
                       sequence, " of ", sequences_, kMakeAgain));
    }
    previous = sequence;
  }
  if (documents_ == 0 && sequences_ != 0) bad(idx.path(), "has sequences but no document");
}

int64_t TokenFile::document_begin(int64_t i) const {
  LONGHAUL_CHECK(i >= 0 && i <= documents_, std::to_string(i));
  const int64_t offsets = kHeader + 4 * sequences_;
  const int64_t sequence = idx_->get<int64_t>(offsets + 8 * sequences_ + 8 * i);
  if (sequence == sequences_) return tokens_;
  return idx_->get<int64_t>(offsets + 8 * sequence) / bytes_per_token_;
}

int64_t TokenFile::document_at(int64_t token) const {
  LONGHAUL_CHECK(token >= 0 && token < tokens_, std::to_string(token));
  int64_t low = 0, high = documents_;  // begin(low) <= token < begin(high)
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (document_begin(middle) <= token ? low : high) = middle;
  }
  return low;
}

void TokenFile::read(int64_t begin, std::span<int32_t> out) const {
  const auto count = static_cast<int64_t>(out.size());
  LONGHAUL_CHECK(begin >= 0 && count <= tokens_ && begin <= tokens_ - count, prefix_);
  if (count == 0) return;
  if (bytes_per_token_ == 4) {
    std::memcpy(out.data(), bin_->at(begin * 4), out.size_bytes());
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    out[static_cast<size_t>(i)] = bin_->get<uint16_t>((begin + i) * 2);
  }
}

int64_t TokenFile::learned(int64_t begin, int64_t end) const {
  LONGHAUL_CHECK(begin >= 0 && begin <= end && end <= tokens_, prefix_);
  if (mask_ == nullptr || begin == end) return end - begin;
  return (end - begin) - std::count(mask_->at(begin), mask_->at(end), '\0');
}

}  // namespace longhaul::launch
