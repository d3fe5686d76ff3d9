// A file that appears under its name only when it is whole: written aside, synced and renamed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace longhaul::launch {

// Failures are Error(kEnvironment) that name the path and the reason.
class OutputFile {
 public:
  // Writes to <path>.partial; creates the folders above it. Of a partial file that a killed program
  // left the first `kept` bytes stay, which it must have; the rest is overwritten.
  explicit OutputFile(std::string path, int64_t kept = 0);
  ~OutputFile();  // removes the partial file unless commit() has succeeded, or leave() was called
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> data);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  template <class T>
  void write_value(T value) {
    write(std::as_bytes(std::span<const T>(&value, 1)));
  }

  void sync();                    // everything written so far is on the disk
  void commit();                  // sync(), then the file takes its name
  void leave() { left_ = true; }  // the partial file stays if there is no commit()

 private:
  void flush();
  [[noreturn]] void fail_for(std::string_view action, int reason) const;

  std::string path_, partial_;
  int file_ = -1;
  std::vector<std::byte> buffer_;
  bool committed_ = false, left_ = false;
};

}  // namespace longhaul::launch
