// An in-order queue of device work. On CPUs every operation has finished when its call returns, so
// a CPU stream is empty; on CUDA `native` is a cudaStream_t. Passed explicitly: there is no current
// stream. With a recording, work is taken down for replays instead of done (recording.h).
#pragma once

#include <functional>
#include <memory>

#include "kernels/core/device.h"

namespace longhaul {

class Recording;
class UploadBuffers;

struct Stream {
  Device device = {};
  void* native = nullptr;
  UploadBuffers* uploads = nullptr;  // of a GPU's
  Recording* recording = nullptr;

  // Whether all that was submitted has been done. Throws Error(kInternal) with the device's own
  // words if something that was submitted has failed, or if work is being recorded: then it is
  // never done.
  bool idle() const;
};

// Blocks until the stream is idle; calls `poll` meanwhile, which may be empty or throw.
void wait_until_idle(const Stream& stream, const std::function<void()>& poll = {});

// A stream of one device, for as long as the object lives.
class OwnedStream {
 public:
  OwnedStream();  // of the CPU
  // Throws Error(kEnvironment) if there is no such device.
  explicit OwnedStream(Device device);
  ~OwnedStream();
  OwnedStream(OwnedStream&&) noexcept;
  OwnedStream& operator=(OwnedStream&&) noexcept;

  const Stream& get() const { return stream_; }

 private:
  std::unique_ptr<UploadBuffers> uploads_;
  Stream stream_;
};

}  // namespace longhaul
