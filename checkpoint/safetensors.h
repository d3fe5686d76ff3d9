// Reading and writing safetensors files (https://github.com/huggingface/safetensors). Files are not
// trusted: whatever is in one, reading it ends in a header that is consistent with the file's size
// or in Error(kCheckpoint), with memory bounded by the header's size (at most 100 MB).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/files.h"
#include "checkpoint/state.h"
#include "kernels/core/tensor.h"

namespace longhaul::checkpoint {

inline constexpr int64_t kMaxSafetensorsHeader = 100'000'000;  // bytes, as in the reference

// "F32", "F64", "BF16", "I32", "I64".
std::string_view safetensors_name(DType dtype);
// Empty for a type that Longhaul does not compute with ("F16", "U8", ...).
std::optional<DType> dtype_from_safetensors(std::string_view name);

struct SafetensorsEntry {
  std::string dtype;  // any type of the format: F64 F32 F16 BF16 I64 ... F8_E4M3 BOOL
  std::vector<int64_t> shape;
  int64_t begin = 0;  // bytes [begin, end) of the file
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::map<std::string, SafetensorsEntry> tensors;
  std::map<std::string, std::string> metadata;
};

// Reads and verifies the header: sizes that agree with shapes, no gap, no overlap, nothing left
// over.
SafetensorsHeader read_safetensors_header(const InputFile& file);

// The header's JSON text, without the length before it, for `data_bytes` bytes of data that start
// at byte `data_begin` of the file. `path` is for messages.
SafetensorsHeader parse_safetensors_header(std::string_view json, int64_t data_begin,
                                           int64_t data_bytes, const std::string& path);

// A tensor to be written.
struct SafetensorsTensor {
  std::string name;  // UTF-8
  std::vector<int64_t> shape;
  ConstTensorView data = {};          // contiguous; as many elements as the shape
  std::optional<Source> source = {};  // in place of data

  DType dtype() const { return source ? source->dtype : data.dtype(); }
};

// Writes header and data (wider types first, so that data is aligned) to a file that must not have
// been written to yet; call file.finish() afterwards. `progress`, if any, is called after the
// header and after every few megabytes.
void write_safetensors(OutputFile& file, std::vector<SafetensorsTensor> tensors,
                       const std::map<std::string, std::string>& metadata,
                       const std::function<void()>& progress = {});

// One file, opened for reading.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(std::string path);
  const std::string& path() const { return file_.path(); }
  const SafetensorsHeader& header() const { return header_; }
  // Reads elements [begin, begin + out.elements()) of a tensor in row-major order. `out` must be
  // contiguous and have the tensor's dtype.
  void read(const std::string& name, int64_t begin, const TensorView& out) const;
  // Reads bytes of a tensor of any type, from its byte `begin` on.
  void read_bytes(const std::string& name, int64_t begin, std::span<std::byte> out) const;

 private:
  const SafetensorsEntry& entry(const std::string& name) const;

  InputFile file_;
  SafetensorsHeader header_;
};

}  // namespace longhaul::checkpoint
