// Files and folders whose writes survive a crash once they are synced. Every failure is an
// Error(kCheckpoint) that names the path and the reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/checksum.h"

namespace longhaul::checkpoint {

// Writes a new file from begin to end.
class OutputFile {
 public:
  explicit OutputFile(std::string path);  // must not exist yet
  ~OutputFile();                          // closes it, whatever state it is in
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::byte> data);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  // Returns once the content is on the disk, and closes the file.
  void finish();

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }
  uint64_t checksum() const { return checksum_.value(); }

 private:
  std::string path_;
  int file_ = -1;
  int64_t bytes_ = 0;
  Checksum checksum_;
};

// Reads a file at any offset.
class InputFile {
 public:
  explicit InputFile(std::string path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& path() const { return path_; }
  int64_t bytes() const { return bytes_; }
  // Fills `data`; the file ending before that is an error.
  void read(int64_t offset, std::span<std::byte> data) const;

 private:
  std::string path_;
  int file_ = -1;
  int64_t bytes_ = 0;
};

// The whole content of a file of at most `limit` bytes.
std::string read_file(const std::string& path, int64_t limit);

bool exists(const std::string& path);
// Names of the entries of a folder, sorted; empty if there is no such folder.
std::vector<std::string> list_folder(const std::string& path);
// With parents, all of them synced. Nothing happens if it exists.
void make_folder(const std::string& path);
void rename_path(const std::string& from, const std::string& to);
// With everything in it; nothing happens if there is none.
void remove_tree(const std::string& path);
// Makes the folder's entries (names, not contents) survive a crash.
void sync_folder(const std::string& path);

}  // namespace longhaul::checkpoint
