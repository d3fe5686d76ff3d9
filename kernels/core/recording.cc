#include "kernels/core/recording.h"

#include <algorithm>
#include <cstring>
#include <exception>

#include "kernels/core/cuda_runtime.h"
#include "kernels/core/error.h"

namespace longhaul {

Recording::Recording(const Stream& stream, const std::function<void(const Stream&)>& submit)
    : stream_(stream) {
  LONGHAUL_CHECK(stream.device.kind == DeviceKind::kCuda && stream.recording == nullptr);
  Stream recorded = stream;
  recorded.recording = this;
  cuda::begin_recording(stream_.native);
  std::exception_ptr failed;
  try {
    submit(recorded);
  } catch (...) {
    failed = std::current_exception();
  }
  try {
    native_ = cuda::end_recording(stream_.native);
  } catch (...) {
    if (!failed) failed = std::current_exception();  // else it follows from the first error
  }
  if (!failed) return;
  if (native_ != nullptr) cuda::destroy_recording(native_);
  free_blocks();
  std::rethrow_exception(failed);
}

Recording::~Recording() {
  // Whoever waits for work that fails is told.
  (void)attempt([this] { wait_until_idle(stream_); });
  cuda::destroy_recording(native_);
  free_blocks();
}

void Recording::free_blocks() noexcept {
  for (const Block& block : kept_) cuda::free_pinned(block.begin);
}

void Recording::replay() const { cuda::replay(native_, stream_.native); }

const std::byte* Recording::keep(std::span<const std::byte> bytes) {
  constexpr size_t kBlock = size_t{1} << 20, kAlignment = 16;
  if (kept_.empty() || kept_.back().size - kept_.back().used < bytes.size()) {
    const size_t size = std::max(kBlock, bytes.size());
    kept_.push_back(
        {.begin = cuda::allocate_pinned(static_cast<int64_t>(size)), .used = 0, .size = size});
  }
  Block& block = kept_.back();
  std::byte* const copy = block.begin + block.used;
  std::memcpy(copy, bytes.data(), bytes.size());
  block.used =
      std::min(block.size, (block.used + bytes.size() + kAlignment - 1) / kAlignment * kAlignment);
  return copy;
}

}  // namespace longhaul
