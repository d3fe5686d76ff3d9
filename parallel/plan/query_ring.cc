#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"
#include "parallel/plan/ring_walk.h"

namespace longhaul::parallel {

Plan plan_query_ring(const Problem& problem, Direction direction, int rank) {
  if (direction == Direction::kForward) return plan_ring(problem, direction, rank);
  const Span heads{0, problem.heads.q_heads};
  RingWalk walk = whole_ring(problem.layout, rank);
  walk.heads = heads;
  walk.visiting = query_inputs(direction);
  walk.sums = query_outputs(direction);

  Plan plan;
  plan.slots.push_back(home_slot(problem, direction, rank));
  plan.slots.resize(static_cast<size_t>(1 + walk.buffers()), {.q_rows = problem.layout.most_rows(),
                                                              .k_rows = 0,
                                                              .q_heads = heads,
                                                              .kv_heads = {},
                                                              .fields = walk.visiting | walk.sums});
  plan.steps.resize(static_cast<size_t>(walk.steps()));
  plan.steps.front().clears.push_back({0, home_outputs(direction)});
  walk.add_to(plan, 0);
  for (int s = 0; s < walk.size(); ++s) {
    add_task(plan.steps[static_cast<size_t>(s)], problem, {walk.slot_at(s), 0, heads, {}},
             problem.layout.runs(walk.visitor(s).rank), problem.layout.runs(rank));
  }
  return plan;
}

}  // namespace longhaul::parallel
