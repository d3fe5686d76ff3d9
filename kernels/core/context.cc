#include "kernels/core/context.h"

#include <algorithm>

namespace longhaul {

void Context::parallel_for(int64_t n, int64_t grain,
                           const std::function<void(int64_t, int64_t)>& work) const {
  if (n <= 0) return;
  // A few tasks per thread even out unequal speeds without making tasks tiny.
  constexpr int64_t kTasksPerThread = 4;
  const int64_t most = (n + grain - 1) / std::max<int64_t>(grain, 1);
  const int64_t tasks = std::clamp<int64_t>(most, 1, kTasksPerThread * pool->threads());
  if (tasks == 1) {
    work(0, n);
    if (poll) poll();
    return;
  }
  pool->run(
      tasks,
      [&](int64_t task, int) {
        const Range range = part_of(n, task, tasks);
        work(range.begin, range.end);
      },
      poll);
}

}  // namespace longhaul
