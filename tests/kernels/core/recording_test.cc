#include "kernels/core/recording.h"

#include <stdexcept>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/core/cuda_runtime.h"
#include "kernels/core/error.h"
#include "kernels/core/transfer.h"

namespace longhaul {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

class RecordingTest : public ::testing::Test {
 protected:
  static constexpr Device kGpu{.kind = DeviceKind::kCuda};

  void SetUp() override {
    if (const std::string why = cuda::why_no_device(); !why.empty()) GTEST_SKIP() << why;
    owned = OwnedStream(kGpu);
    a = Tensor(DType::kI32, {2}, kGpu);
    b = Tensor(DType::kI32, {2}, kGpu);
  }
  void set(const Stream& to, const Tensor& x, std::vector<int32_t> values) {
    upload(to, std::as_bytes(std::span(values)), x.view().raw());
    values = {-1, -1};  // as the caller may
  }
  std::vector<int32_t> values(const Tensor& x) {
    const Tensor host = on_host(owned.get(), x);
    const std::span<const int32_t> span = host.span<int32_t>();
    return {span.begin(), span.end()};
  }

  OwnedStream owned;
  Tensor a, b;
};

TEST_F(RecordingTest, IsDoneByReplaysAlone) {
  const Stream& stream = owned.get();
  set(stream, a, {1, 2});
  set(stream, b, {3, 4});
  const Recording recording(stream, [&](const Stream& recorded) {
    upload(recorded, a, b);  // from device to device
    set(recorded, a, {5, 6});
  });
  EXPECT_THAT(values(a), ElementsAre(1, 2));
  EXPECT_THAT(values(b), ElementsAre(3, 4));
  recording.replay();
  EXPECT_THAT(values(a), ElementsAre(5, 6));
  EXPECT_THAT(values(b), ElementsAre(1, 2));
  // Addresses are recorded, not what was there; what comes from the host is.
  set(stream, a, {7, 8});
  recording.replay();
  recording.replay();
  EXPECT_THAT(values(a), ElementsAre(5, 6));
  EXPECT_THAT(values(b), ElementsAre(5, 6));
}

TEST_F(RecordingTest, KeepsAllThatIsUploaded) {
  constexpr int64_t kBytes = (int64_t{1} << 20) - 8;
  const Stream& stream = owned.get();
  const Tensor large(DType::kI32, {3 * kBytes / 4}, kGpu);
  const Recording recording(stream, [&](const Stream& recorded) {
    for (int64_t i = 0; i < 3; ++i) {
      const Tensor host(DType::kI32, {kBytes / 4});
      for (int32_t& value : host.span<int32_t>()) value = static_cast<int32_t>(i + 1);
      upload(recorded, host, large.view().rows(i * kBytes / 4, kBytes / 4));
    }
    set(recorded, a, {10, 11});
  });
  recording.replay();
  EXPECT_THAT(values(a), ElementsAre(10, 11));
  const Tensor host = on_host(stream, large);
  int64_t wrong = 0;
  for (int64_t i = 0; i < 3 * kBytes / 4; ++i) {
    wrong += host.span<int32_t>()[static_cast<size_t>(i)] != i / (kBytes / 4) + 1;
  }
  EXPECT_EQ(wrong, 0);
}

TEST_F(RecordingTest, NobodyWaitsForIt) {
  const auto wait = [&] {
    const Recording recording(owned.get(), [&](const Stream& recorded) { on_host(recorded, a); });
  };
  EXPECT_THAT(wait, ThrowsMessage<Error>(HasSubstr("recorded")));
  // Nor for the stream itself, though that is found by the device alone.
  const auto ask = [&] {
    const Recording recording(owned.get(), [&](const Stream&) {
      try {
        owned.get().idle();
      } catch (const Error&) {
      }
    });
  };
  EXPECT_THAT(ask, ThrowsMessage<Error>(HasSubstr("capture")));
  set(owned.get(), a, {1, 2});
  EXPECT_THAT(values(a), ElementsAre(1, 2));
}

TEST_F(RecordingTest, AnErrorLeavesTheStreamAsItWas) {
  set(owned.get(), a, {1, 2});
  const auto fail = [&] {
    const Recording recording(owned.get(), [&](const Stream& recorded) {
      set(recorded, a, {3, 4});
      throw std::runtime_error("of the work");
    });
  };
  EXPECT_THAT(fail, ThrowsMessage<std::runtime_error>("of the work"));
  EXPECT_THAT(values(a), ElementsAre(1, 2));
}

}  // namespace
}  // namespace longhaul
