#include "dist/slab_window.h"

#include <absl/strings/str_cat.h>

#include <atomic>
#include <new>

#include "kernels/core/error.h"

namespace longhaul::dist {
namespace {

constexpr int64_t kCacheLine = 64;

struct alignas(kCacheLine) Flag {
  std::atomic<uint64_t> value{0};
};
// Owner and readers write different lines.
struct SlotFlags {
  Flag epoch;    // of what the slot holds
  Flag readers;  // that have not released it
};
static_assert(std::atomic<uint64_t>::is_always_lock_free, "flags are shared between processes");

int64_t round_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

class SlabWindow final : public Window {
 public:
  SlabWindow(const SlabLayout& layout, int rank, std::vector<Slab> slabs)
      : layout_(layout), rank_(rank), slabs_(std::move(slabs)) {
    LONGHAUL_CHECK(reachable(rank_));
  }

  int slots() const override { return layout_.slots; }
  int64_t slot_bytes() const override { return layout_.slot_bytes; }
  bool reachable(int peer) const override { return slab(peer) != nullptr; }

  std::span<std::byte> local(int slot) override {
    return {data(rank_, slot), static_cast<size_t>(layout_.slot_bytes)};
  }
  std::span<const std::byte> peer(int peer, int slot) const override {
    return {data(peer, slot), static_cast<size_t>(layout_.slot_bytes)};
  }

  void publish(int slot, uint64_t epoch, int readers) override {
    SlotFlags& flag = flags(rank_, slot);
    LONGHAUL_CHECK(free(slot), absl::StrCat("slot ", slot, " is still being read"));
    LONGHAUL_CHECK(epoch > flag.epoch.value.load(std::memory_order_relaxed),
                   absl::StrCat("slot ", slot, ", epoch ", epoch));
    LONGHAUL_CHECK(readers >= 0);
    // Ordered before the epoch's store: who sees the epoch sees the count it will lower.
    flag.readers.value.store(static_cast<uint64_t>(readers), std::memory_order_relaxed);
    flag.epoch.value.store(epoch, std::memory_order_release);
  }

  bool published(int peer, int slot, uint64_t epoch) const override {
    const uint64_t current = flags(peer, slot).epoch.value.load(std::memory_order_acquire);
    LONGHAUL_CHECK(current <= epoch, absl::StrCat("slot ", slot, " of rank ", peer, ", epoch ",
                                                  epoch, " is gone, now ", current));
    return current == epoch;
  }

  void release(int peer, int slot) override {
    // Release: the owner's next write comes after this rank's last read.
    const uint64_t before = flags(peer, slot).readers.value.fetch_sub(1, std::memory_order_acq_rel);
    LONGHAUL_CHECK(before > 0, absl::StrCat("slot ", slot, " of rank ", peer, " released twice"));
  }

  bool free(int slot) const override {
    return flags(rank_, slot).readers.value.load(std::memory_order_acquire) == 0;
  }

 private:
  const Slab& slab(int rank) const {
    LONGHAUL_CHECK(rank >= 0 && rank < static_cast<int>(slabs_.size()));
    return slabs_[static_cast<size_t>(rank)];
  }
  std::byte* base(int rank, int slot) const {
    LONGHAUL_CHECK(slot >= 0 && slot < layout_.slots);
    LONGHAUL_CHECK(reachable(rank), absl::StrCat("rank ", rank, " shares no memory"));
    return slab(rank).get();
  }
  std::byte* data(int rank, int slot) const {
    return base(rank, slot) + layout_.flag_bytes() + slot * layout_.stride();
  }
  SlotFlags& flags(int rank, int slot) const {
    return std::launder(reinterpret_cast<SlotFlags*>(base(rank, slot)))[slot];
  }

  const SlabLayout layout_;
  const int rank_;
  const std::vector<Slab> slabs_;
};

}  // namespace

int64_t SlabLayout::flag_bytes() const {
  return round_up(slots * static_cast<int64_t>(sizeof(SlotFlags)), kSlabAlignment);
}
int64_t SlabLayout::stride() const { return round_up(slot_bytes, kCacheLine); }
int64_t SlabLayout::bytes() const { return flag_bytes() + slots * stride(); }

void initialise_slab(std::byte* slab, const SlabLayout& layout) {
  for (int slot = 0; slot < layout.slots; ++slot) {
    new (slab + static_cast<size_t>(slot) * sizeof(SlotFlags)) SlotFlags;
  }
}

std::unique_ptr<Window> slab_window(const SlabLayout& layout, int rank, std::vector<Slab> slabs) {
  return std::make_unique<SlabWindow>(layout, rank, std::move(slabs));
}

}  // namespace longhaul::dist
