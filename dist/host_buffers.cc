#include "dist/host_buffers.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels/core/cuda_runtime.h"
#include "kernels/core/error.h"

namespace longhaul::dist {
namespace {

constexpr int64_t kLeastBytes = 4096;

// Sizes in steps of a quarter of a power of two, so that tensors of similar sizes share memory and
// less than a quarter of it is wasted.
int64_t rounded(int64_t bytes) {
  const int64_t step =
      static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(std::max(bytes, kLeastBytes))) / 4);
  return (std::max(bytes, kLeastBytes) + step - 1) / step * step;
}

}  // namespace

EventPool::~EventPool() {
  for (void* event : free_) cuda::destroy_event(event);
}

void* EventPool::take() {
  if (free_.empty()) return cuda::make_event(device_.index);
  void* const event = free_.back();
  free_.pop_back();
  return event;
}

Event::Event(Event&& other) noexcept
    : pool_(other.pool_), event_(std::exchange(other.event_, nullptr)) {}

HostBuffers::Buffer::Buffer(Buffer&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), index_(other.index_) {}

HostBuffers::HostBuffers(Device device) : copies_(device), events_(device) {}

HostBuffers::~HostBuffers() {
  (void)attempt([this] { wait_until_idle(copies_.get()); });
  for (const Slot& slot : slots_) {
    cuda::destroy_event(slot.free_after);
    cuda::free_pinned(slot.memory);
  }
}

size_t HostBuffers::take(int64_t bytes) {
  // The smallest that is large enough, without giving a small tensor a huge one.
  const int64_t size = rounded(bytes);
  size_t best = slots_.size();
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.lent || slot.bytes < size || slot.bytes > 4 * size) continue;
    if (best < slots_.size() && slots_[best].bytes <= slot.bytes) continue;
    if (cuda::reached(slot.free_after)) best = i;
  }
  if (best == slots_.size()) {
    void* const event = cuda::make_event(device().index);
    try {
      slots_.push_back({cuda::allocate_pinned(size), size, false, event});
    } catch (...) {
      cuda::destroy_event(event);
      throw;
    }
    allocated_bytes_ += size;
  }
  slots_[best].lent = true;
  return best;
}

void HostBuffers::give_back(size_t index) {
  Slot& slot = slots_[index];
  // A device that has failed is said so by whoever asks next; the memory then stays out of use.
  if (!attempt([&] { cuda::record(slot.free_after, copies_.get().native); })) slot.lent = false;
}

}  // namespace longhaul::dist
