// Stack-ordered memory for one purpose (activations, workspace, ...), sized before step one.
//
// A run is measured first: the same code is executed with measuring arenas, whose views have shapes
// and no data, and kernels that return at once (Context::measuring). The peak of the measuring
// arena is then the capacity of the real one: what `plan` prints is what the run allocates.
//
// Memory is returned in reverse order by Scope; a forward pass may keep its allocations and the
// backward pass return to marks taken between layers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/core/tensor.h"

namespace longhaul {

class Arena {
 public:
  // Counts allocations without making any.
  static Arena measure(std::string name, Device device = kCpu) {
    return Arena(std::move(name), 0, device, true);
  }
  // Reserves `capacity` bytes of the device's memory now. Throws Error(kEnvironment) if there are
  // not as many.
  Arena(std::string name, int64_t capacity, Device device = kCpu)
      : Arena(std::move(name), capacity, device, false) {}

  Arena(Arena&&) = default;
  Arena& operator=(Arena&&) = default;

  // Uninitialised, aligned to 64 bytes (on GPUs, to 256). Throws Error(kInternal) beyond the
  // capacity, since the measured run promised that it would not happen.
  TensorView allocate(DType dtype, const Shape& shape);

  bool measuring() const { return measuring_; }
  const std::string& name() const { return name_; }
  Device device() const { return device_; }
  int64_t used() const { return used_; }
  int64_t peak() const { return peak_; }
  int64_t capacity() const { return capacity_; }

  // Everything allocated after mark() is returned by release(mark).
  int64_t mark() const { return used_; }
  void release(int64_t mark);

  // Fills all free memory with NaN bit patterns, so that a read of uninitialised memory shows.
  void poison();

  // Returns to the mark taken at construction.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
    ~Scope() { arena_.release(mark_); }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    int64_t mark_;
  };

 private:
  Arena(std::string name, int64_t capacity, Device device, bool measuring);
  int64_t aligned(int64_t bytes) const;

  std::string name_;
  Device device_;
  Tensor memory_;
  int64_t capacity_ = 0;
  int64_t used_ = 0;
  int64_t peak_ = 0;
  bool measuring_ = false;
};

}  // namespace longhaul
