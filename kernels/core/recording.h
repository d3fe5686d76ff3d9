// Work for a GPU that is submitted again and again: recorded once, then replayed with one call
// instead of one a kernel (a CUDA graph).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/core/stream.h"

namespace longhaul {

class Recording {
 public:
  // Calls `submit` with the stream as one that takes down what is submitted to it instead of doing
  // it. Replays use the same addresses, sizes and numbers, and upload what was uploaded here. Who
  // waits for the recorded stream gets Error(kInternal); what `submit` throws comes through, and
  // nothing is recorded. The stream is a GPU's.
  Recording(const Stream& stream, const std::function<void(const Stream& recorded)>& submit);
  // Waits until replays have been done.
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  // Submits what was recorded to the stream.
  void replay() const;

  // For uploads: a copy of the host's bytes, as long as the recording lives.
  const std::byte* keep(std::span<const std::byte> bytes);

 private:
  struct Block {  // pinned
    std::byte* begin;
    size_t used, size;
  };
  void free_blocks() noexcept;

  Stream stream_;
  void* native_ = nullptr;
  std::vector<Block> kept_;
};

}  // namespace longhaul
