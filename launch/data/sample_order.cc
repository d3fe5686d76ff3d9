#include "launch/data/sample_order.h"

#include <bit>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "kernels/core/random.h"

namespace longhaul::launch {
namespace {

// Enough for a small domain, too, where few rounds reach few permutations.
constexpr uint64_t kRounds = 8;

uint64_t permute_once(uint64_t value, int half_bits, RandomKey key) {
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t left = value >> half_bits, right = value & mask;
  for (uint64_t round = 0; round < kRounds; ++round) {
    // half_bits <= 32, so (round, right) fits one counter.
    const uint64_t mixed = left ^ (random_u64(key, (round << 32) | right) & mask);
    left = right;
    right = mixed;
  }
  return (left << half_bits) | right;
}

}  // namespace

SampleOrder::SampleOrder(int64_t tokens, int64_t sequence_length, uint64_t seed)
    : sequence_length_(sequence_length), seed_(seed) {
  if (sequence_length < 1) {
    fail(ErrorCode::kConfig,
         absl::StrCat("data.sequence_length is ", sequence_length, ": it must be at least 1"));
  }
  windows_ = tokens / sequence_length;
  if (windows_ < 1) {
    fail(ErrorCode::kData,
         absl::StrCat("the corpus has ", tokens, " tokens, fewer than one sequence of ",
                      sequence_length, ": set data.sequence_length to at most ", tokens,
                      " or prepare a larger corpus"));
  }
  // The smallest domain of an even number of bits that holds all windows: less than four times as
  // many, so walking takes fewer than four steps on average.
  half_bits_ = (std::bit_width(static_cast<uint64_t>(windows_ - 1)) + 1) / 2;
}

int64_t SampleOrder::begin(int64_t sample_index) const {
  LONGHAUL_CHECK(sample_index >= 0, std::to_string(sample_index));
  const auto epoch = static_cast<uint64_t>(sample_index / windows_);
  const RandomKey key{seed_, stream_of("sample order") + epoch};
  auto window = static_cast<uint64_t>(sample_index % windows_);
  // The domain is larger than the number of windows: walk along the permutation's cycle until it
  // is back among them.
  do {
    window = permute_once(window, half_bits_, key);
  } while (window >= static_cast<uint64_t>(windows_));
  return static_cast<int64_t>(window) * sequence_length_;
}

}  // namespace longhaul::launch
