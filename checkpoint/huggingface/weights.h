// The weights of a Hugging Face folder: one safetensors file, or several with an index. Tensors are
// streamed: no more than a few megabytes of one are in memory.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace longhaul::checkpoint::huggingface {

class Weights {
 public:
  // Opens every file and verifies that index and files agree. Throws Error(kCheckpoint).
  explicit Weights(const std::string& folder);

  struct Entry {
    std::string dtype;  // any of the format
    std::vector<int64_t> shape;
    std::string file;  // its path
  };
  const std::map<std::string, Entry>& tensors() const { return tensors_; }

  // Fills `out` (bf16, f32 or f64; contiguous, on the CPU) with elements [begin, begin +
  // out.elements()) in row-major order, converted from F64, F32, BF16 or F16: of a tensor whose
  // type float_bytes() knows.
  void read(const std::string& name, int64_t begin, const TensorView& out) const;

 private:
  void add_file(const std::string& path);

  std::map<std::string, Entry> tensors_;
  std::map<std::string, SafetensorsFile> files_;  // by path
};

// Writes tensors into an existing folder as model.safetensors, or, if they take more than
// `file_bytes`, as model-00001-of-0000N.safetensors and the index; in the given order, as many in a
// file as fit, but at least one. Files there are not overwritten. Throws Error(kCheckpoint).
void write_weights(const std::string& folder, std::vector<SafetensorsTensor> tensors,
                   int64_t file_bytes);

}  // namespace longhaul::checkpoint::huggingface
