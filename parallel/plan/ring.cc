#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"
#include "parallel/plan/ring_walk.h"

namespace longhaul::parallel {

Plan plan_ring(const Problem& problem, Direction direction, int rank) {
  RingWalk walk = whole_ring(problem.layout, rank);
  walk.heads = {0, problem.heads.kv_heads};
  walk.visiting = kKeys;
  walk.sums = direction == Direction::kBackward ? kKeyGradients : Fields{};
  walk.origins = true;

  Plan plan;
  plan.slots.push_back(home_slot(problem, direction, rank));
  plan.slots.resize(static_cast<size_t>(1 + walk.buffers()), key_buffer(problem, direction));
  plan.steps.resize(static_cast<size_t>(walk.steps()));
  plan.steps.front().clears.push_back({0, home_outputs(direction)});
  walk.add_to(plan, 0);
  for (int s = 0; s < walk.size(); ++s) {
    add_ring_task(plan.steps[static_cast<size_t>(s)], problem, rank, walk.visitor(s).rank,
                  walk.slot_at(s));
  }
  plan.home_readers = all_other_readers(problem, rank);
  return plan;
}

}  // namespace longhaul::parallel
