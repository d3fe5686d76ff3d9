// Pinned memory of the host through which bytes go to a GPU, so that whoever uploads neither waits
// for the stream nor keeps the bytes: a copy from memory that is not pinned does one or the other,
// depending on its size and the system.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "kernels/core/device.h"

namespace longhaul {

class UploadBuffers {
 public:
  // Takes no memory before the first upload.
  explicit UploadBuffers(Device device) : device_(device) {}
  // The stream has done with all uploads.
  ~UploadBuffers();
  UploadBuffers(const UploadBuffers&) = delete;
  UploadBuffers& operator=(const UploadBuffers&) = delete;

  // In the order of the stream, which is the same in all calls. `from` may be changed on return.
  // Waits for copies before only while all buffers are on their way.
  void upload(void* native_stream, std::span<const std::byte> from, std::byte* to);

 private:
  struct Block {
    std::byte* memory = nullptr;
    void* sent = nullptr;  // event
  };
  void take_free_block();

  const Device device_;
  std::vector<Block> blocks_;
  size_t current_ = 0;  // that has `used_` bytes in it
  size_t used_ = 0;
};

}  // namespace longhaul
