#include "kernels/core/stream.h"

#include <thread>
#include <utility>

#include "kernels/core/cuda_runtime.h"
#include "kernels/core/error.h"

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

OwnedStream::OwnedStream(Device device)
    : stream_{
          .device = device,
          .native = device.kind == DeviceKind::kCpu ? nullptr : cuda::make_stream(device.index)} {}

OwnedStream::~OwnedStream() {
  if (stream_.native != nullptr) cuda::destroy_stream(stream_.device.index, stream_.native);
}

OwnedStream::OwnedStream(OwnedStream&& other) noexcept
    : stream_(std::exchange(other.stream_, Stream{})) {}

OwnedStream& OwnedStream::operator=(OwnedStream&& other) noexcept {
  std::swap(stream_, other.stream_);
  return *this;
}

}  // namespace longhaul
