#include "parallel/plan/ring_walk.h"

#include "parallel/plan/parts.h"

namespace longhaul::parallel {

void RingWalk::add_to(Plan& plan, int first_step) const {
  const int next = members[static_cast<size_t>((place + 1) % size())].rank;
  const int previous = members[static_cast<size_t>((place + size() - 1) % size())].rank;
  const auto hop = [&](Step& step, int done_by, Fields fields, int leaving, int arriving,
                       int arriving_slot, Reduce reduce) {
    const bool named = origins && fields == visiting;
    const Member &out = visitor(leaving), &in = visitor(arriving);
    if (out.rows > 0) {
      add_send(
          step,
          {next, slot_at(leaving), fields, {0, out.rows}, heads, done_by, named ? out.rank : -1});
    }
    if (in.rows > 0) {
      add_receive(
          step,
          {previous, arriving_slot, fields, {0, in.rows}, heads, done_by, named ? in.rank : -1},
          reduce);
    }
  };
  for (int s = 0; s < steps(); ++s) {
    const int done_by = first_step + s + 1;
    Step& step = plan.steps[static_cast<size_t>(first_step + s)];
    if (s + 1 < size()) hop(step, done_by, visiting, s, s + 1, slot_at(s + 1), Reduce::kStore);
    if (sums.empty() || s == 0) continue;
    if (s < size() && visitor(s).rows > 0) step.clears.push_back({slot_at(s), sums});
    // What the previous rank has for the rows of step s is added to this rank's part of step s, and
    // leaves during step s + 1; the last hop goes home.
    const int arriving_slot = s == size() ? own_slot : slot_at(s);
    if (s >= 2) hop(step, done_by, sums, s - 1, s, arriving_slot, Reduce::kAdd);
  }
}

RingWalk whole_ring(const TokenLayout& layout, int rank) {
  RingWalk walk;
  for (int r = 0; r < layout.ranks(); ++r) walk.members.push_back({r, layout.rows(r)});
  walk.place = rank;
  return walk;
}

}  // namespace longhaul::parallel
