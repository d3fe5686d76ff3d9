#include "kernels/peak.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "kernels/core/tensor.h"
#include "kernels/cpu/instruction_set.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/peak.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace {

// Independent chains of multiply-adds, to hide the latency of the units: two of 4 cycles each need
// 8 at least, but reach their full speed with 12 (as with 24; 10 lack 4 %), which the 16 registers
// of AVX2 can hold. Returns the FLOPs done; `sink` keeps the compiler from dropping them.
template <class T>
HWY_INLINE double MultiplyAdds(int64_t rounds, volatile T* sink) {
  const hn::ScalableTag<T> d;
  const auto a = hn::Set(d, T(0.999)), b = hn::Set(d, T(0.001));
  auto c0 = hn::Iota(d, 0), c1 = hn::Iota(d, 1), c2 = hn::Iota(d, 2), c3 = hn::Iota(d, 3);
  auto c4 = hn::Iota(d, 4), c5 = hn::Iota(d, 5), c6 = hn::Iota(d, 6), c7 = hn::Iota(d, 7);
  auto c8 = hn::Iota(d, 8), c9 = hn::Iota(d, 9), c10 = hn::Iota(d, 10), c11 = hn::Iota(d, 11);
  for (int64_t i = 0; i < rounds; ++i) {
    c0 = hn::MulAdd(c0, a, b);
    c1 = hn::MulAdd(c1, a, b);
    c2 = hn::MulAdd(c2, a, b);
    c3 = hn::MulAdd(c3, a, b);
    c4 = hn::MulAdd(c4, a, b);
    c5 = hn::MulAdd(c5, a, b);
    c6 = hn::MulAdd(c6, a, b);
    c7 = hn::MulAdd(c7, a, b);
    c8 = hn::MulAdd(c8, a, b);
    c9 = hn::MulAdd(c9, a, b);
    c10 = hn::MulAdd(c10, a, b);
    c11 = hn::MulAdd(c11, a, b);
  }
  const auto low = hn::Add(hn::Add(hn::Add(c0, c1), hn::Add(c2, c3)), hn::Add(c8, c9));
  const auto high = hn::Add(hn::Add(hn::Add(c4, c5), hn::Add(c6, c7)), hn::Add(c10, c11));
  *sink = hn::GetLane(hn::SumOfLanes(d, hn::Add(low, high)));
  constexpr double kChains = 12, kFlopsPerLane = 2;
  return static_cast<double>(rounds) * kChains * kFlopsPerLane * static_cast<double>(hn::Lanes(d));
}

double MultiplyAddsF32(int64_t rounds) {
  volatile float sink = 0;
  return MultiplyAdds(rounds, &sink);
}

double MultiplyAddsF64(int64_t rounds) {
  volatile double sink = 0;
  return MultiplyAdds(rounds, &sink);
}

// Products of bf16 pairs take longer than multiply-adds: 16 chains. Only for machines that have
// them (cpu::has_bf16_products()).
#if HWY_TARGET == HWY_AVX3
double Bf16Products(int64_t rounds) {
  // Ones throughout: what is in the registers does not change the time.
  const hn::ScalableTag<float> d;
  const auto ones = hn::BitCast(d, hn::Set(hn::ScalableTag<uint16_t>(), uint16_t{0x3f80}));
  auto c0 = hn::Zero(d), c1 = c0, c2 = c0, c3 = c0, c4 = c0, c5 = c0, c6 = c0, c7 = c0;
  auto c8 = c0, c9 = c0, c10 = c0, c11 = c0, c12 = c0, c13 = c0, c14 = c0, c15 = c0;
  for (int64_t i = 0; i < rounds; ++i) {
    c0 = add_pair_products(ones, ones, c0);
    c1 = add_pair_products(ones, ones, c1);
    c2 = add_pair_products(ones, ones, c2);
    c3 = add_pair_products(ones, ones, c3);
    c4 = add_pair_products(ones, ones, c4);
    c5 = add_pair_products(ones, ones, c5);
    c6 = add_pair_products(ones, ones, c6);
    c7 = add_pair_products(ones, ones, c7);
    c8 = add_pair_products(ones, ones, c8);
    c9 = add_pair_products(ones, ones, c9);
    c10 = add_pair_products(ones, ones, c10);
    c11 = add_pair_products(ones, ones, c11);
    c12 = add_pair_products(ones, ones, c12);
    c13 = add_pair_products(ones, ones, c13);
    c14 = add_pair_products(ones, ones, c14);
    c15 = add_pair_products(ones, ones, c15);
  }
  const auto sum = [](auto a, auto b, auto c, auto d) {
    return hn::Add(hn::Add(a, b), hn::Add(c, d));
  };
  volatile float sink = 0;
  sink = hn::GetLane(sum(sum(c0, c1, c2, c3), sum(c4, c5, c6, c7), sum(c8, c9, c10, c11),
                         sum(c12, c13, c14, c15)));
  constexpr double kChains = 16, kFlopsPerLane = 4;
  return static_cast<double>(rounds) * kChains * kFlopsPerLane * static_cast<double>(hn::Lanes(d));
}
#else
double Bf16Products(int64_t) { return 0; }
#endif

void Copy(const float* HWY_RESTRICT from, int64_t n, float* HWY_RESTRICT to) {
  const hn::ScalableTag<float> d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i + step <= n; i += step) hn::Store(hn::Load(d, from + i), d, to + i);
}

void CopyPastCache(const float* HWY_RESTRICT from, int64_t n, float* HWY_RESTRICT to) {
  const hn::ScalableTag<float> d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i + step <= n; i += step) hn::Stream(hn::Load(d, from + i), d, to + i);
  hwy::FlushStream();
}

}  // namespace
}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels {
namespace cpu {
HWY_EXPORT(MultiplyAddsF32);
HWY_EXPORT(MultiplyAddsF64);
HWY_EXPORT(Bf16Products);
HWY_EXPORT(Copy);
HWY_EXPORT(CopyPastCache);
}  // namespace cpu

namespace {

// Calls each(thread) on that many threads at once.
void on_threads(int threads, const std::function<void(int)>& each) {
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(each, thread);
  each(0);
  for (std::thread& thread : others) thread.join();
}

// What all threads do a second together; work(thread) does a part of it and returns how much.
double rate(int threads, const std::function<double(int)>& work) {
  using Clock = std::chrono::steady_clock;
  // Long enough for the clock to settle, short enough not to delay a start.
  constexpr auto kDuration = std::chrono::milliseconds(40);
  std::vector<double> rates(static_cast<size_t>(threads));
  std::atomic<int> ready{0};
  on_threads(threads, [&](int thread) {
    // All threads at once, since cores share power, clock and memory.
    for (++ready; ready.load() < threads;) std::this_thread::yield();
    double done = 0;
    const auto begin = Clock::now();
    std::chrono::duration<double> elapsed{};
    while (elapsed < kDuration) {
      done += work(thread);
      elapsed = Clock::now() - begin;
    }
    rates[static_cast<size_t>(thread)] = done / elapsed.count();
  });
  double total = 0;
  for (double each : rates) total += each;
  return total;
}

int64_t last_level_cache_bytes() {
  // What a machine does not tell is 0 or -1.
  const int64_t third = sysconf(_SC_LEVEL3_CACHE_SIZE), second = sysconf(_SC_LEVEL2_CACHE_SIZE);
  return std::max(third, second);
}

}  // namespace

DType multiply_add_type(DType dtype) {
  return dtype == DType::kBF16 && !cpu::has_bf16_products() ? DType::kF32 : dtype;
}

double measured_peak_flops(DType dtype, int threads) {
  constexpr int64_t kRounds = 20'000;
  switch (multiply_add_type(dtype)) {
    case DType::kF32:
      return rate(threads, [](int) { return HWY_DYNAMIC_DISPATCH(cpu::MultiplyAddsF32)(kRounds); });
    case DType::kF64:
      return rate(threads, [](int) { return HWY_DYNAMIC_DISPATCH(cpu::MultiplyAddsF64)(kRounds); });
    case DType::kBF16:
      return rate(threads, [](int) { return HWY_DYNAMIC_DISPATCH(cpu::Bf16Products)(kRounds); });
    default:
      check_failed(__FILE__, __LINE__, "dtype is a floating type");
  }
}

CopyBandwidth::CopyBandwidth(int threads) : shares_(static_cast<size_t>(threads)) {
  constexpr int64_t kLeastBytes = int64_t{128} << 20, kVector = 16;  // elements
  const int64_t bytes = std::max(4 * last_level_cache_bytes(), kLeastBytes);
  const int64_t each = bytes / threads / size_of(DType::kF32) / kVector * kVector;
  // Memory belongs near the thread that touches it first.
  on_threads(threads, [&](int thread) {
    shares_[static_cast<size_t>(thread)] = {.from = Tensor(DType::kF32, {each}),
                                            .to = Tensor(DType::kF32, {each})};
  });
}

double CopyBandwidth::measure() const {
  const auto copying = [&](auto copy) {
    return rate(static_cast<int>(shares_.size()), [&](int thread) {
      const Share& share = shares_[static_cast<size_t>(thread)];
      const std::span<float> from = share.from.span<float>(), to = share.to.span<float>();
      copy(from.data(), static_cast<int64_t>(from.size()), to.data());
      return static_cast<double>(from.size_bytes() + to.size_bytes());
    });
  };
  return std::max(copying(HWY_DYNAMIC_DISPATCH(cpu::Copy)),
                  copying(HWY_DYNAMIC_DISPATCH(cpu::CopyPastCache)));
}

}  // namespace longhaul::kernels
#endif
