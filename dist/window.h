// Memory that neighbours read in place. A copy cannot overlap with compute when there is no spare
// core to make it, so ranks of one node read each other's keys and values where they lie.
//
// Protocol, per slot of the owner:
//   owner:  wait_free(slot)  ->  write local(slot)  ->  publish(slot, epoch, readers)
//   reader: published(owner, slot, epoch)?  ->  read peer(owner, slot)  ->  release(owner, slot)
// Epochs grow. A reader that was counted must release exactly once per epoch. publish/published and
// release/wait_free are release/acquire pairs: what was written before is seen after.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace longhaul::dist {

class Window {
 public:
  virtual ~Window() = default;  // collective, like its creation

  virtual int slots() const = 0;
  virtual int64_t slot_bytes() const = 0;
  // Whether this rank can read that rank's slots (same node or same process). Same on both sides.
  virtual bool reachable(int peer) const = 0;

  virtual std::span<std::byte> local(int slot) = 0;
  virtual std::span<const std::byte> peer(int peer, int slot) const = 0;

  virtual void publish(int slot, uint64_t epoch, int readers) = 0;
  virtual bool published(int peer, int slot, uint64_t epoch) const = 0;
  virtual void release(int peer, int slot) = 0;
  virtual bool free(int slot) const = 0;  // all counted readers have released
};

}  // namespace longhaul::dist
