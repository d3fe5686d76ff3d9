#include "kernels/core/stream.h"

#include <thread>
#include <utility>

#include "kernels/core/cuda_runtime.h"
#include "kernels/core/error.h"
#include "kernels/core/upload_buffers.h"

namespace longhaul {

bool Stream::idle() const {
  LONGHAUL_CHECK(recording == nullptr, "work that is recorded cannot be waited for");
  return device.kind == DeviceKind::kCpu || cuda::idle(native);
}

void wait_until_idle(const Stream& stream, const std::function<void()>& poll) {
  while (!stream.idle()) {
    if (poll) poll();
    std::this_thread::yield();
  }
}

OwnedStream::OwnedStream() = default;

OwnedStream::OwnedStream(Device device) {
  stream_.device = device;
  if (device.kind == DeviceKind::kCpu) return;
  stream_.native = cuda::make_stream(device.index);
  uploads_ = std::make_unique<UploadBuffers>(device);
  stream_.uploads = uploads_.get();
}

OwnedStream::~OwnedStream() {
  if (stream_.native == nullptr) return;
  // Whoever waits for work that fails is told.
  (void)attempt([this] { wait_until_idle(stream_); });
  cuda::destroy_stream(stream_.device.index, stream_.native);
}

OwnedStream::OwnedStream(OwnedStream&& other) noexcept
    : uploads_(std::move(other.uploads_)), stream_(std::exchange(other.stream_, Stream{})) {}

OwnedStream& OwnedStream::operator=(OwnedStream&& other) noexcept {
  std::swap(uploads_, other.uploads_);
  std::swap(stream_, other.stream_);
  return *this;
}

}  // namespace longhaul
