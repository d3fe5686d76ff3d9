// The window protocol, with ranks that are fast and slow at random.
#include <absl/strings/str_cat.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "kernels/core/random.h"
#include "tests/dist/suite.h"

namespace longhaul::dist::testing {
namespace {

constexpr int kSlots = 2;
constexpr int64_t kWords = 3'001;
constexpr int64_t kSlotBytes = kWords * static_cast<int64_t>(sizeof(uint64_t));

uint64_t word(int rank, uint64_t epoch, int64_t i) {
  return (static_cast<uint64_t>(rank) << 56) ^ (epoch << 32) ^ static_cast<uint64_t>(i);
}

void epochs(Group& group) {
  const int size = group.size(), rank = group.rank();
  const auto window = group.make_window(kSlots, kSlotBytes);
  expect(window != nullptr && window->slots() == kSlots && window->slot_bytes() == kSlotBytes);
  for (int peer = 0; peer < size; ++peer) expect(window->reachable(peer));
  uint64_t draws = 0;
  const auto random = [&](int n) {
    const RandomKey key{3, static_cast<uint64_t>(rank)};
    return static_cast<int>(random_u64(key, draws++) % static_cast<uint64_t>(n));
  };
  const auto dawdle = [&] {
    if (random(8) == 0) std::this_thread::sleep_for(std::chrono::microseconds(random(200)));
  };

  for (uint64_t epoch = 1; epoch <= 120; ++epoch) {
    const int slot = static_cast<int>(epoch % kSlots);
    group.wait_until([&] { return window->free(slot); }, "free");
    auto* mine = reinterpret_cast<uint64_t*>(window->local(slot).data());
    for (int64_t i = 0; i < kWords; ++i) mine[i] = word(rank, epoch, i);
    dawdle();
    // This rank reads its own too, and rank 0 skips what nobody counted it for.
    const auto reads = [&](int reader, int owner) { return reader != 0 || owner % 2 == 0; };
    int readers = 0;
    for (int reader = 0; reader < size; ++reader) readers += reads(reader, rank);
    window->publish(slot, epoch, readers);

    const int first = random(size);
    for (int i = 0; i < size; ++i) {
      const int owner = (first + i) % size;
      if (!reads(rank, owner)) continue;
      group.wait_until([&] { return window->published(owner, slot, epoch); }, "published",
                       [&] { return absl::StrCat("rank ", owner); });
      const auto* theirs = reinterpret_cast<const uint64_t*>(window->peer(owner, slot).data());
      dawdle();
      for (int64_t k = 0; k < kWords; ++k) {
        if (theirs[k] == word(owner, epoch, k)) continue;
        expect(false, absl::StrCat("epoch ", epoch, ", word ", k));
      }
      window->release(owner, slot);
    }
  }
}

void several(Group& group) {
  const auto first = group.make_window(1, 8);
  const auto second = group.make_window(3, 100);
  const auto none = group.make_window(0, 100);
  expect(none->slots() == 0);
  // Slots do not overlap, not even in a cache line.
  std::fill_n(reinterpret_cast<char*>(first->local(0).data()), 8, 'f');
  for (int slot = 0; slot < 3; ++slot) {
    std::ranges::fill(second->local(slot), std::byte(group.rank() * 3 + slot));
    second->publish(slot, 1, group.size());
  }
  for (int owner = 0; owner < group.size(); ++owner) {
    for (int slot = 0; slot < 3; ++slot) {
      group.wait_until([&] { return second->published(owner, slot, 1); }, "published");
      for (const std::byte b : second->peer(owner, slot)) {
        expect(b == std::byte(owner * 3 + slot));
      }
      second->release(owner, slot);
    }
  }
  for (int slot = 0; slot < 3; ++slot) {
    group.wait_until([&] { return second->free(slot); }, "free");
  }
  for (const std::byte b : first->local(0)) expect(b == std::byte('f'));
}

// Broken promises are errors at once, not wrong numbers later.
void misuse(Group& group) {
  const auto window = group.make_window(1, 64);
  const int me = group.rank();
  expect_error(ErrorCode::kInternal, [&] { window->local(1); });
  expect_error(ErrorCode::kInternal, [&] { window->peer(group.size(), 0); });
  window->publish(0, 5, 1);
  expect(!window->free(0) && window->published(me, 0, 5) && !window->published(me, 0, 6));
  expect_error(ErrorCode::kInternal, [&] { window->publish(0, 6, 1); });           // being read
  expect_error(ErrorCode::kInternal, [&] { (void)window->published(me, 0, 4); });  // gone
  window->release(me, 0);
  expect(window->free(0));
  expect_error(ErrorCode::kInternal, [&] { window->publish(0, 5, 0); });  // epochs grow
  window->publish(0, 6, 0);
  expect(window->free(0));
  group.barrier("misuse");
}

}  // namespace

std::vector<Case> window_cases() {
  return {{"window_epochs", epochs}, {"window_several", several}, {"window_misuse", misuse}};
}

}  // namespace longhaul::dist::testing
