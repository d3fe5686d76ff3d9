// Reading single tensors of one checkpoint, of any number of ranks, in one process: for export.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "checkpoint/checkpoint.h"

namespace longhaul::checkpoint {

struct SavedTensor {
  DType dtype = DType::kF32;
  Shape shape;
};

// What a checkpoint holds, by name. Throws Error(kCheckpoint).
std::map<std::string, SavedTensor> saved_tensors(const std::string& path);

class Reader {
 public:
  // Throws Error(kCheckpoint) if there is no complete checkpoint at `path`, a folder.
  explicit Reader(const std::string& path);
  ~Reader();

  const Info& info() const { return info_; }
  const std::map<std::string, SavedTensor>& tensors() const { return tensors_; }
  // Fills `out`, contiguous, on the CPU and of the tensor's type, with elements [begin, begin +
  // out.elements()) in row-major order. The first read from a file verifies its size and checksum.
  // Throws Error(kCheckpoint).
  void read(const std::string& name, int64_t begin, const TensorView& out) const;

 private:
  struct Files;
  Info info_;
  std::map<std::string, SavedTensor> tensors_;
  std::unique_ptr<Files> files_;
};

}  // namespace longhaul::checkpoint
