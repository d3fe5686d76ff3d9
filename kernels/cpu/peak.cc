// Multiply-adds on registers alone, as fast as the cores can: enough independent chains to hide the
// latency of the units, and no memory.
#include "kernels/peak.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/peak.cc"
#include "hwy/foreach_target.h"
//
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace longhaul::kernels::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Returns the FLOPs done; `sink` keeps the compiler from dropping them.
double MultiplyAdds(int64_t rounds, float* sink) {
  const hn::ScalableTag<float> d;
  const auto a = hn::Set(d, 0.999f), b = hn::Set(d, 0.001f);
  auto c0 = hn::Iota(d, 0), c1 = hn::Iota(d, 1), c2 = hn::Iota(d, 2), c3 = hn::Iota(d, 3);
  auto c4 = hn::Iota(d, 4), c5 = hn::Iota(d, 5), c6 = hn::Iota(d, 6), c7 = hn::Iota(d, 7);
  auto c8 = hn::Iota(d, 8), c9 = hn::Iota(d, 9);
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
  }
  const auto low = hn::Add(hn::Add(hn::Add(c0, c1), hn::Add(c2, c3)), c8);
  const auto high = hn::Add(hn::Add(hn::Add(c4, c5), hn::Add(c6, c7)), c9);
  *sink = hn::GetLane(hn::SumOfLanes(d, hn::Add(low, high)));
  constexpr double kChains = 10, kFlopsPerLane = 2;
  return static_cast<double>(rounds) * kChains * kFlopsPerLane * static_cast<double>(hn::Lanes(d));
}

}  // namespace longhaul::kernels::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace longhaul::kernels {
namespace cpu {
HWY_EXPORT(MultiplyAdds);
}  // namespace cpu

double measured_peak_flops(int threads) {
  using Clock = std::chrono::steady_clock;
  // Long enough for the clock to settle, short enough not to delay a start.
  constexpr auto kDuration = std::chrono::milliseconds(40);
  constexpr int64_t kRounds = 20'000;
  std::vector<double> rates(static_cast<size_t>(threads));
  std::atomic<int> ready{0};
  const auto measure = [&](int thread) {
    // All threads at once, since cores share power and clock.
    for (++ready; ready.load() < threads;) std::this_thread::yield();
    // The rate over the whole time, not the best moment: threads may have to share cores.
    float sink = 0;
    double flops = 0;
    const auto begin = Clock::now();
    std::chrono::duration<double> elapsed{};
    while (elapsed < kDuration) {
      flops += HWY_DYNAMIC_DISPATCH(cpu::MultiplyAdds)(kRounds, &sink);
      elapsed = Clock::now() - begin;
    }
    rates[static_cast<size_t>(thread)] = flops / elapsed.count();
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(measure, thread);
  measure(0);
  for (std::thread& thread : others) thread.join();
  double total = 0;
  for (double rate : rates) total += rate;
  return total;
}

}  // namespace longhaul::kernels
#endif
