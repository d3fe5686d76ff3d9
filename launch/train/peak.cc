#include "launch/train/peak.h"

#include <algorithm>
#include <chrono>

#include "kernels/core/random.h"
#include "kernels/core/transfer.h"
#include "kernels/gemm.h"
#include "kernels/peak.h"
#include "kernels/pointwise.h"

namespace longhaul::launch {

namespace {

using Clock = std::chrono::steady_clock;

// Random values: zeros would be multiplied faster than the real thing.
Tensor random_square(const Context& ctx, DType dtype, int64_t n) {
  Tensor all(dtype, {n, n}, ctx.device());
  const Tensor rows(dtype, {std::min<int64_t>(n, 64), n});
  visit_float(dtype, [&]<class T>() {
    uint64_t index = 0;
    for (T& value : rows.span<T>()) {
      value = static_cast<T>(static_cast<float>(random_normal({.seed = 1, .stream = 1}, index++)));
    }
  });
  for (int64_t row = 0; row < n; row += rows.view().dim(0)) {
    upload(ctx.stream, rows, all.view().rows(row, rows.view().dim(0)));
  }
  return all;
}

// Seconds of one product of two n x n matrices.
double product_seconds(const Context& ctx, DType dtype, int64_t n) {
  const Tensor a = random_square(ctx, dtype, n), b = random_square(ctx, dtype, n);
  const Tensor c(dtype, {n, n}, ctx.device());
  const kernels::Gemm gemm{.transpose_b = kernels::Transpose::kYes, .a = a, .b = b, .c = c};
  Arena scratch = Arena::measure("matrix product", ctx.device());
  Context on_its_own = ctx;
  on_its_own.scratch = &scratch;
  kernels::gemm(on_its_own, gemm);
  scratch = Arena("matrix product", scratch.peak(), ctx.device());
  double best = 0;
  constexpr int kTries = 4;  // the first one sets up
  for (int i = 0; i < kTries; ++i) {
    wait_until_idle(ctx.stream);
    const auto begin = Clock::now();
    kernels::gemm(on_its_own, gemm);
    wait_until_idle(ctx.stream);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = i == 0 ? seconds : std::min(best, seconds);
  }
  return best;
}

}  // namespace

double measured_copy(const Context& ctx) {
  constexpr int64_t kElements = int64_t{64} << 20;  // f32: several times the cache
  const Tensor from(DType::kF32, {kElements}, ctx.device()),
      to(DType::kF32, {kElements}, ctx.device());
  double best = 0;
  constexpr int kTries = 4;
  for (int i = 0; i < kTries; ++i) {
    wait_until_idle(ctx.stream);
    const auto begin = Clock::now();
    kernels::copy(ctx, from, to);
    wait_until_idle(ctx.stream);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    best = std::max(best, 2.0 * static_cast<double>(from.view().bytes()) / seconds);
  }
  return best;
}

double measured_peak(const Context& ctx, DType dtype) {
  if (ctx.device() == kCpu) return kernels::measured_peak_flops(dtype, ctx.pool->threads());
  // As large as takes a few milliseconds: smaller ones do not fill a GPU.
  constexpr double kLongEnough = 2e-3;
  constexpr int64_t kFirst = 256, kLargest = 4096;
  double peak = 0;
  for (int64_t n = kFirst; n <= kLargest; n *= 2) {
    const double seconds = product_seconds(ctx, dtype, n);
    const auto size = static_cast<double>(n);
    peak = std::max(peak, 2 * size * size * size / seconds);
    if (seconds > kLongEnough) break;
  }
  return peak;
}

}  // namespace longhaul::launch
