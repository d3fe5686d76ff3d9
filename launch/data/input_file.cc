#include "launch/data/input_file.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <string_view>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"

namespace longhaul::launch {
namespace {

constexpr size_t kBuffer = size_t{1} << 18;

[[noreturn]] void bad(const std::string& path, const std::string& why) {
  fail(ErrorCode::kData, absl::StrCat("'", path, "' ", why));
}

}  // namespace

// A step takes from the front of `in` and puts to the front of `out`.
class InputFile::Unpacker {
 public:
  virtual ~Unpacker() = default;
  // Says what is wrong; empty: nothing.
  virtual std::string step(std::span<const char>& in, std::span<char>& out) = 0;
  // Whether the stream may end here.
  virtual bool complete() const = 0;
};

class InputFile::Gzip : public Unpacker {
 public:
  Gzip() {
    // 16: gzip, not zlib's own header.
    if (inflateInit2(&stream_, 15 + 16) != Z_OK) throw std::bad_alloc();
  }
  ~Gzip() override { inflateEnd(&stream_); }
  Gzip(const Gzip&) = delete;
  Gzip& operator=(const Gzip&) = delete;

  std::string step(std::span<const char>& in, std::span<char>& out) override {
    if (complete_) inflateReset(&stream_);  // another member begins
    complete_ = false;
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(in.data()));
    stream_.avail_in = static_cast<uInt>(in.size());
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = static_cast<uInt>(std::min(out.size(), kBuffer));
    const uInt room = stream_.avail_out;
    const int status = inflate(&stream_, Z_NO_FLUSH);
    in = in.last(stream_.avail_in);
    out = out.subspan(room - stream_.avail_out);
    if (status == Z_STREAM_END) {
      complete_ = true;
    } else if (status != Z_OK && status != Z_BUF_ERROR) {
      return stream_.msg != nullptr ? stream_.msg : "unknown failure of zlib";
    }
    return "";
  }
  bool complete() const override { return complete_; }

 private:
  z_stream stream_{};
  bool complete_ = false;
};

class InputFile::Zstd : public Unpacker {
 public:
  Zstd() : stream_(ZSTD_createDStream(), ZSTD_freeDStream) {
    if (stream_ == nullptr) throw std::bad_alloc();
    ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, 27);  // 128 MiB: the tool's limit
  }
  std::string step(std::span<const char>& in, std::span<char>& out) override {
    ZSTD_inBuffer from{in.data(), in.size(), 0};
    ZSTD_outBuffer to{out.data(), out.size(), 0};
    const size_t status = ZSTD_decompressStream(stream_.get(), &to, &from);
    in = in.subspan(from.pos);
    out = out.subspan(to.pos);
    if (ZSTD_isError(status) != 0) return ZSTD_getErrorName(status);
    complete_ = status == 0;
    return "";
  }
  bool complete() const override { return complete_; }

 private:
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream_;
  bool complete_ = false;
};

InputFile::InputFile(const std::string& path)
    : path_(path), file_(std::fopen(path.c_str(), "rbe"), std::fclose), buffer_(kBuffer) {
  if (file_ == nullptr) {
    fail(ErrorCode::kData,
         absl::StrCat("cannot read '", path, "': ", std::generic_category().message(errno)));
  }
  refill();
  const std::string_view begin(input_.data(), input_.size());
  // A model trained on compressed bytes learns nothing, and nobody would see why.
  for (const std::string_view magic : {"\xfd\x37zXZ", "BZh9", "PK\x03\x04"}) {
    if (begin.starts_with(magic)) {
      bad(path,
          "is compressed in a way that is not read here: unpack it first, or pack it with "
          "gzip or zstd");
    }
  }
  if (begin.starts_with("\x1f\x8b")) unpacker_ = std::make_unique<Gzip>();
  if (begin.starts_with("\x28\xb5\x2f\xfd")) unpacker_ = std::make_unique<Zstd>();
}

InputFile::~InputFile() = default;

bool InputFile::refill() {
  if (file_ended_) return false;
  const size_t got = std::fread(buffer_.data(), 1, buffer_.size(), file_.get());
  if (std::ferror(file_.get()) != 0) {
    fail(ErrorCode::kData,
         absl::StrCat("cannot read '", path_, "': ", std::generic_category().message(errno)));
  }
  file_ended_ = got < buffer_.size();
  input_ = std::span<const char>(buffer_).first(got);
  return got > 0;
}

size_t InputFile::read(std::span<char> out) {
  if (unpacker_ != nullptr) return read_packed(out);
  size_t done = 0;
  while (done < out.size() && (!input_.empty() || refill())) {
    const size_t bytes = std::min(input_.size(), out.size() - done);
    std::memcpy(out.data() + done, input_.data(), bytes);
    input_ = input_.subspan(bytes);
    done += bytes;
  }
  return done;
}

size_t InputFile::read_packed(std::span<char> out) {
  std::span<char> left = out;
  while (!left.empty()) {
    if (input_.empty() && !refill()) {
      // What the decoder still holds may come out without input.
      const size_t before = left.size();
      if (!unpacker_->complete()) {
        if (const std::string why = unpacker_->step(input_, left); !why.empty()) {
          bad(path_, absl::StrCat("is damaged: ", why));
        }
      }
      if (left.size() == before) {
        if (!unpacker_->complete()) bad(path_, "is truncated: its compressed stream does not end");
        break;
      }
      continue;
    }
    if (const std::string why = unpacker_->step(input_, left); !why.empty()) {
      bad(path_, absl::StrCat("is damaged: ", why));
    }
  }
  return out.size() - left.size();
}

std::string without_packing_suffix(const std::string& path) {
  for (const std::string_view suffix : {".gz", ".zst"}) {
    if (path.ends_with(suffix)) return path.substr(0, path.size() - suffix.size());
  }
  return path;
}

}  // namespace longhaul::launch
