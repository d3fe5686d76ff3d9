#include "launch/bench/group_timer.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "launch/cli/ranks.h"

namespace longhaul::launch {

GroupTiming time_together(dist::Group& group, const Context& ctx,
                          const std::function<void()>& work) {
  constexpr const char* kWhat = "benchmark";
  using Clock = std::chrono::steady_clock;
  wait_until_idle(ctx.stream);
  group.barrier(kWhat);
  const dist::Traffic::Counter before = group.traffic().total();
  const auto begin = Clock::now();
  work();
  wait_until_idle(ctx.stream);
  const auto elapsed = Clock::now() - begin;
  const dist::Traffic::Counter after = group.traffic().total();
  const auto total = [&](int64_t dist::Traffic::Counter::*bytes) {
    return static_cast<int64_t>(
        group.sum(static_cast<double>(after.*bytes - before.*bytes), kWhat));
  };
  const int64_t slowest =
      group.max(std::chrono::duration_cast<std::chrono::nanoseconds>(elapsed).count(), kWhat);
  const double waited = after.waited_seconds - before.waited_seconds;
  const double busy = std::chrono::duration<double>(elapsed).count() - waited;
  const auto most_busy = static_cast<double>(group.max(static_cast<int64_t>(1e9 * busy), kWhat));
  return {.seconds = 1e-9 * static_cast<double>(slowest),
          .waited = group.sum(waited, kWhat) / group.size(),
          .busy = group.sum(busy, kWhat) / group.size(),
          .most_busy = 1e-9 * most_busy,
          .moved_bytes = total(&dist::Traffic::Counter::received_bytes),
          .in_place_bytes = total(&dist::Traffic::Counter::in_place_bytes)};
}

void check_timing_over_ranks(int64_t ranks, int64_t threads, double least_seconds) {
  if (threads < 0 || threads > 1024) {
    fail(ErrorCode::kConfig, absl::StrCat("--threads ", threads, ": 1 to 1024, or 0"));
  }
  if (!(least_seconds >= 0)) {
    fail(ErrorCode::kConfig, absl::StrCat("--seconds ", least_seconds, ": 0 or more"));
  }
  if (ranks != 0) check_ranks_option(ranks);
}

}  // namespace longhaul::launch
