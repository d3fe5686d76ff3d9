#include "kernels/core/tensor.h"

#include "gtest/gtest.h"

namespace longhaul {
namespace {

TEST(Tensor, OwnsZeroedAlignedMemory) {
  const Tensor x(DType::kF32, {3, 4});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(x.view().raw()) % 64, 0u);
  for (float v : x.span<float>()) EXPECT_EQ(v, 0.0f);
  EXPECT_TRUE(Tensor(DType::kF32, {0, 4}).view().empty());
}

// Large ones are laid out for huge pages.
TEST(Tensor, LargeOnesAreZeroedAndAlignedToHugePages) {
  Tensor x;
  for (int again = 0; again < 2; ++again) {
    x = Tensor(DType::kF32, {3, (1 << 19) + 5});
    EXPECT_EQ(reinterpret_cast<uintptr_t>(x.view().raw()) % (1 << 21), 0u);
    for (float& v : x.span<float>()) {
      ASSERT_EQ(v, 0.0f);
      v = 1.0f;  // for the next one, which may get the same memory
    }
  }
}

TEST(TensorView, SlicesAndSplits) {
  const Tensor x(DType::kF32, {3, 8});
  for (size_t i = 0; i < 24; ++i) x.span<float>()[i] = static_cast<float>(i);
  const TensorView middle = x.view().slice(1, 2, 4);
  EXPECT_FALSE(middle.contiguous());
  EXPECT_EQ(middle.rows(1, 2).data<float>()[0], 10.0f);
  const TensorView heads = middle.split_last(2, 2);
  EXPECT_EQ(heads.shape(), (Shape{3, 2, 2}));
  EXPECT_EQ(heads.data<float>()[2 * heads.stride(0) + heads.stride(1) + 1], 21.0f);
  EXPECT_EQ(x.view().reshape({4, 6}).stride(0), 6);
}

TEST(TensorView, RefusesWhatDoesNotFit) {
  const Tensor x(DType::kF32, {3, 8});
  EXPECT_THROW(x.view().rows(2, 2), Error);
  EXPECT_THROW(x.view().reshape({5, 5}), Error);
  EXPECT_THROW(x.view().slice(1, 0, 4).reshape({12}), Error);
  EXPECT_THROW(x.view().split_last(3, 3), Error);
  EXPECT_THROW((void)x.view().data<double>(), Error);
  EXPECT_THROW((Shape{1, -1}), Error);
}

}  // namespace
}  // namespace longhaul
