// What a rank's operations on device tensors need over and over: pinned host memory, events, and a
// stream for their copies, so that these overlap with compute. Kept and reused, so that a training
// step allocates nothing once the first one has run. Not thread-safe, like all of a rank's objects.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/core/stream.h"

namespace longhaul::dist {

// Events of one device. Taking one makes it only if none is free.
class EventPool {
 public:
  explicit EventPool(Device device) : device_(device) {}
  ~EventPool();
  EventPool(const EventPool&) = delete;
  EventPool& operator=(const EventPool&) = delete;

  void* take();
  void give_back(void* event) { free_.push_back(event); }

 private:
  const Device device_;
  std::vector<void*> free_;
};

// An event on loan. Empty after a move.
class Event {
 public:
  explicit Event(EventPool& pool) : pool_(&pool), event_(pool.take()) {}
  ~Event() {
    if (event_ != nullptr) pool_->give_back(event_);
  }
  Event(Event&& other) noexcept;
  Event& operator=(Event&&) = delete;

  void* get() const { return event_; }

 private:
  EventPool* pool_;
  void* event_;
};

class HostBuffers {
 public:
  // Throws Error(kEnvironment) if there is no such device.
  explicit HostBuffers(Device device);
  ~HostBuffers();
  HostBuffers(const HostBuffers&) = delete;
  HostBuffers& operator=(const HostBuffers&) = delete;

  Device device() const { return copies_.get().device; }
  const Stream& copies() const { return copies_.get(); }  // copies from and to the buffers
  EventPool& events() { return events_; }
  int64_t allocated_bytes() const { return allocated_bytes_; }

  // Memory on loan.
  class Buffer {
   public:
    Buffer(HostBuffers& pool, int64_t bytes) : pool_(&pool), index_(pool.take(bytes)) {}
    ~Buffer() {
      if (pool_ != nullptr) pool_->give_back(index_);
    }
    Buffer(Buffer&& other) noexcept;
    Buffer& operator=(Buffer&&) = delete;

    std::byte* memory() const { return pool_->slots_[index_].memory; }
    // Somebody may still use it: it is not lent again.
    void lose() { pool_ = nullptr; }

   private:
    HostBuffers* pool_;
    size_t index_;
  };

 private:
  struct Slot {
    std::byte* memory = nullptr;
    int64_t bytes = 0;
    bool lent = false;
    void* free_after = nullptr;  // event: its last copy
  };
  size_t take(int64_t bytes);
  void give_back(size_t index);

  OwnedStream copies_;
  EventPool events_;
  std::vector<Slot> slots_;
  int64_t allocated_bytes_ = 0;
};

}  // namespace longhaul::dist
