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
  const Tensor rows(dtype, {std::min<int64_t>(n, 16), n});
  visit_float(dtype, [&]<class T>() {
    uint64_t index = 0;
    for (T& value : rows.span<T>()) {
      value = static_cast<T>(static_cast<float>(random_normal({.seed = 1, .stream = 1}, index++)));
    }
  });
  upload(ctx.stream, rows, all.view().rows(0, rows.view().dim(0)));
  for (int64_t done = rows.view().dim(0); done < n; done *= 2) {
    const int64_t count = std::min(done, n - done);
    upload(ctx.stream, all.view().rows(0, count), all.view().rows(done, count));
  }
  return all;
}

// Seconds of one product of two n x n matrices, of several that are submitted together.
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
  int calls = 1;
  constexpr int kTries = 4;  // the first one sets up
  for (int i = 0; i < kTries; ++i) {
    wait_until_idle(ctx.stream);
    const auto begin = Clock::now();
    for (int call = 0; call < calls; ++call) kernels::gemm(on_its_own, gemm);
    wait_until_idle(ctx.stream);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count() / calls;
    best = i <= 1 ? seconds : std::min(best, seconds);
    // So many that submitting the first and noticing the last do not count.
    constexpr double kTogether = 2e-3;
    calls = static_cast<int>(std::clamp(kTogether / seconds, 1.0, 16.0));
  }
  return best;
}

}  // namespace

double measured_copy(const Context& ctx) {
  constexpr int64_t kElements = int64_t{64} << 20;  // f32: several times the cache
  const Tensor from(DType::kF32, {kElements}, ctx.device()),
      to(DType::kF32, {kElements}, ctx.device());
  double best = 0;
  constexpr int kTries = 4, kCalls = 8;
  for (int i = 0; i < kTries; ++i) {
    wait_until_idle(ctx.stream);
    const auto begin = Clock::now();
    for (int call = 0; call < kCalls; ++call) kernels::copy(ctx, from, to);
    wait_until_idle(ctx.stream);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count() / kCalls;
    best = std::max(best, 2.0 * static_cast<double>(from.view().bytes()) / seconds);
  }
  return best;
}

double measured_peak(const Context& ctx, DType dtype) {
  if (ctx.device() == kCpu) return kernels::measured_peak_flops(dtype, ctx.pool->threads());
  // As large as takes a while: smaller ones do not fill a GPU. A run may have left less memory than
  // the largest want; those before it are a few per cent slower.
  constexpr double kLongEnough = 5e-4;
  constexpr int64_t kFirst = 256, kLargest = 8192;
  double peak = 0;
  for (int64_t n = kFirst; n <= kLargest; n *= 2) {
    double seconds = 0;
    const auto no_memory = attempt([&] { seconds = product_seconds(ctx, dtype, n); });
    if (no_memory && (peak == 0 || no_memory->code() != ErrorCode::kEnvironment)) throw *no_memory;
    if (no_memory) break;
    const auto size = static_cast<double>(n);
    peak = std::max(peak, 2 * size * size * size / seconds);
    if (seconds > kLongEnough) break;
  }
  return peak;
}

}  // namespace longhaul::launch
