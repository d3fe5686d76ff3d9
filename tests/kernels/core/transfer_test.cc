#include "kernels/core/transfer.h"

#include <numeric>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/core/cuda_runtime.h"

namespace longhaul {
namespace {

// Through several buffers, at sizes that do and do not fill them.
TEST(Transfer, WhatIsUploadedMayChangeAtOnce) {
  constexpr Device kGpu{.kind = DeviceKind::kCuda};
  if (const std::string why = cuda::why_no_device(); !why.empty()) GTEST_SKIP() << why;
  const OwnedStream stream(kGpu);
  const std::vector<int64_t> sizes = {1,       3, (int64_t{1} << 18) - 1, int64_t{1} << 18, 5,
                                      3000001, 7};
  const int64_t all = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  const Tensor there(DType::kI32, {all}, kGpu);
  std::vector<int32_t> source;
  int64_t done = 0;
  for (const int64_t size : sizes) {
    source.resize(static_cast<size_t>(size));
    std::iota(source.begin(), source.end(), static_cast<int32_t>(done));
    upload(stream.get(), std::as_bytes(std::span(source)), there.view().rows(done, size).raw());
    source.assign(source.size(), -1);
    done += size;
  }
  const Tensor back = on_host(stream.get(), there);
  int64_t wrong = 0;
  for (int64_t i = 0; i < all; ++i) wrong += back.span<int32_t>()[static_cast<size_t>(i)] != i;
  EXPECT_EQ(wrong, 0);
}

}  // namespace
}  // namespace longhaul
