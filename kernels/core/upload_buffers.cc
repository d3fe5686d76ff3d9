#include "kernels/core/upload_buffers.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "kernels/core/cuda_runtime.h"

namespace longhaul {

namespace {
constexpr size_t kBlockBytes = size_t{1} << 20;
constexpr size_t kMostBlocks = 8;
constexpr size_t kAlignment = 64;
}  // namespace

UploadBuffers::~UploadBuffers() {
  for (const Block& block : blocks_) {
    cuda::destroy_event(block.sent);
    cuda::free_pinned(block.memory);
  }
}

void UploadBuffers::take_free_block() {
  used_ = 0;
  while (true) {
    for (current_ = 0; current_ < blocks_.size(); ++current_) {
      if (cuda::reached(blocks_[current_].sent)) return;
    }
    if (blocks_.size() < kMostBlocks) {
      Block block{.memory = cuda::allocate_pinned(kBlockBytes)};
      blocks_.push_back(block);  // destroyed with the others from here on
      blocks_.back().sent = cuda::make_event(device_.index);
      return;
    }
    std::this_thread::yield();
  }
}

void UploadBuffers::upload(void* native_stream, std::span<const std::byte> from, std::byte* to) {
  if (blocks_.empty()) take_free_block();
  while (!from.empty()) {
    const size_t count = std::min(from.size(), kBlockBytes - used_);
    std::byte* const block = blocks_[current_].memory + used_;
    std::memcpy(block, from.data(), count);
    cuda::copy(native_stream, block, to, static_cast<int64_t>(count));
    from = from.subspan(count);
    to += count;
    used_ += (count + kAlignment - 1) / kAlignment * kAlignment;
    if (used_ < kBlockBytes) continue;
    cuda::record(blocks_[current_].sent, native_stream);
    take_free_block();
  }
}

}  // namespace longhaul
