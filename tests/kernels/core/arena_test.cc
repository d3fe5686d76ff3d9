#include "kernels/core/arena.h"

#include <cmath>

#include "gtest/gtest.h"

namespace longhaul {
namespace {

// Allocates in nested scopes, as layers do.
void use(Arena& arena) {
  arena.allocate(DType::kF32, {3, 5});
  {
    const Arena::Scope scope(arena);
    arena.allocate(DType::kF64, {100});
    const Arena::Scope inner(arena);
    arena.allocate(DType::kBF16, {7});
  }
  arena.allocate(DType::kI32, {1});
}

TEST(Arena, MeasuredPeakIsWhatTheRunNeeds) {
  Arena measured = Arena::measure("activations");
  use(measured);
  EXPECT_TRUE(measured.measuring());
  EXPECT_EQ(measured.peak(), 64 + 832 + 64);
  EXPECT_EQ(measured.used(), 64 + 64);
  Arena real("activations", measured.peak());
  use(real);
  EXPECT_EQ(real.peak(), measured.peak());
}

TEST(Arena, MeasuredViewsHaveShapesAndNoData) {
  Arena arena = Arena::measure("x");
  const TensorView view = arena.allocate(DType::kF32, {4, 2});
  EXPECT_EQ(view.raw(), nullptr);
  EXPECT_EQ(view.shape(), (Shape{4, 2}));
  EXPECT_EQ(view.rows(1, 2).raw(), nullptr);
}

TEST(Arena, AllocationsAreAlignedAndApart) {
  Arena arena("x", 1024);
  const TensorView a = arena.allocate(DType::kBF16, {3}), b = arena.allocate(DType::kF64, {1});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.raw()) % 64, 0u);
  EXPECT_EQ(b.raw() - a.raw(), 64);
}

TEST(Arena, RefusesMoreThanItsCapacity) {
  Arena arena("x", 64);
  arena.allocate(DType::kF32, {16});
  EXPECT_THROW(arena.allocate(DType::kF32, {1}), Error);
}

TEST(Arena, ScopeReturnsItsMemoryAlsoWhenThrowing) {
  Arena arena("x", 128);
  const TensorView first = arena.allocate(DType::kF32, {16});
  try {
    const Arena::Scope scope(arena);
    arena.allocate(DType::kF32, {16});
    arena.allocate(DType::kF32, {1});
    FAIL();
  } catch (const Error&) {
  }
  EXPECT_EQ(arena.used(), 64);
  EXPECT_EQ(arena.allocate(DType::kF32, {16}).raw() - first.raw(), 64);
}

TEST(Arena, PoisonFillsOnlyFreeMemory) {
  Arena arena("x", 256);
  const TensorView kept = arena.allocate(DType::kF32, {16});
  kept.span<float>()[15] = 5;
  arena.poison();
  EXPECT_EQ(kept.span<float>()[15], 5);
  const TensorView fresh = arena.allocate(DType::kF64, {24});
  for (double v : fresh.span<double>()) EXPECT_TRUE(std::isnan(v));
}

}  // namespace
}  // namespace longhaul
