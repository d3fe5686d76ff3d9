// A message whose bytes do not fit an int, between ranks 0 and 1.
#pragma once

#include <memory>

#include "tests/dist/suite.h"

namespace longhaul::dist::testing {

inline constexpr int64_t kLargeElements = (int64_t{1} << 28) + 12'345;  // of 8 bytes: 2^31 + ...

inline void large_message(Group& group) {
  expect(group.size() == 2);
  Stream stream;
  // Not a Tensor, which would write all of it once more.
  const std::unique_ptr<int64_t[]> memory(new int64_t[kLargeElements]);
  const TensorView data(reinterpret_cast<std::byte*>(memory.get()), DType::kI64, {kLargeElements});
  constexpr int64_t kStep = 509;  // every page is seen
  if (group.rank() == 0) {
    for (int64_t i = 0; i < kLargeElements; i += kStep) memory[static_cast<size_t>(i)] = i * 3;
    memory[kLargeElements - 1] = -1;
    const Send send{1, data};
    group.exchange(stream, {&send, 1}, {}, "large").wait(stream);
    expect(group.traffic()["large"].sent_bytes == kLargeElements * 8);
  } else {
    const Recv recv{0, data};
    group.exchange(stream, {}, {&recv, 1}, "large").wait(stream);
    for (int64_t i = 0; i < kLargeElements; i += kStep) {
      expect(memory[static_cast<size_t>(i)] == (i == kLargeElements - 1 ? -1 : i * 3));
    }
    expect(memory[kLargeElements - 1] == -1);
  }
}

}  // namespace longhaul::dist::testing
