// Reads a file, unpacking gzip (RFC 1952) and zstd (RFC 8878) on the way; which one it is, its
// first bytes say. Several members or frames are one stream.
#pragma once

#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace longhaul::launch {

class InputFile {
 public:
  // Throws Error(kData) naming the file: unreadable, or packed in another way (xz, bzip2, zip),
  // which would be trained on as it is.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  // Fills `out` as far as the file goes; 0: its end. Throws Error(kData) for damaged or truncated
  // streams.
  size_t read(std::span<char> out);

 private:
  class Unpacker;
  class Gzip;
  class Zstd;
  size_t read_packed(std::span<char> out);
  bool refill();  // input_ is used up; false: so is the file

  std::string path_;
  std::unique_ptr<FILE, int (*)(FILE*)> file_;
  std::vector<char> buffer_;
  std::span<const char> input_;  // in buffer_, not consumed yet
  bool file_ended_ = false;
  std::unique_ptr<Unpacker> unpacker_;  // null: not packed
};

// "x.jsonl" for "x.jsonl.gz" and "x.jsonl.zst".
std::string without_packing_suffix(const std::string& path);

}  // namespace longhaul::launch
