#include "kernels/core/context.h"

#include <atomic>
#include <vector>

#include "gtest/gtest.h"

namespace longhaul {
namespace {

TEST(Context, ParallelForCoversEveryItemOnce) {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    Arena scratch("x", 0);
    int polls = 0;
    const Context ctx{.stream = {}, .pool = &pool, .scratch = &scratch, .poll = [&] { ++polls; }};
    for (int64_t n : {0, 1, 5, 97}) {
      for (int64_t grain : {1, 10, 1000}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
        std::atomic<int64_t> tasks{0};
        ctx.parallel_for(n, grain, [&](int64_t begin, int64_t end) {
          ++tasks;
          for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
        });
        for (const auto& count : seen) EXPECT_EQ(count, 1);
        // ceil(n / grain) tasks at most, so that none is smaller than asked for.
        EXPECT_LE(tasks, (n + grain - 1) / grain);
      }
    }
    EXPECT_GT(polls, 0);
  }
}

}  // namespace
}  // namespace longhaul
