#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"

namespace longhaul::parallel {

namespace {

// At step s the keys of rank (rank - s) lie in slot 0 (home) at first, then in slots 1 and 2 in
// turn: one is computed on and sent on while the next keys arrive in the other.
int slot_at(int s) { return s == 0 ? 0 : 1 + (s - 1) % 2; }

class Ring {
 public:
  Ring(const Problem& problem, Direction direction, int rank)
      : problem_(problem), direction_(direction), rank_(rank), ranks_(problem.layout.ranks()) {}

  Plan plan() const {
    const bool backward = direction_ == Direction::kBackward;
    Plan plan;
    plan.slots.push_back(home_slot(problem_, direction_, rank_));
    for (int i = 1; i < ranks_ && i <= 2; ++i) {
      plan.slots.push_back(key_buffer(problem_, direction_));
    }
    // In backward one more step brings the gradients of this rank's keys home.
    plan.steps.resize(static_cast<size_t>(ranks_ + (backward && ranks_ > 1 ? 1 : 0)));
    plan.steps.front().clears.push_back({0, home_outputs(direction_)});
    for (int s = 0; s < static_cast<int>(plan.steps.size()); ++s) {
      Step& step = plan.steps[static_cast<size_t>(s)];
      if (s + 1 < ranks_) pass_keys(step, s);
      if (backward && s >= 1) pass_gradients(step, s);
      if (s < ranks_) add_ring_task(step, problem_, rank_, origin(s), slot_at(s));
    }
    plan.home_readers = all_other_readers(problem_, rank_);
    return plan;
  }

 private:
  int next() const { return (rank_ + 1) % ranks_; }
  int previous() const { return (rank_ + ranks_ - 1) % ranks_; }
  // Whose keys this rank works on at step s.
  int origin(int s) const { return (rank_ + ranks_ - s % ranks_) % ranks_; }

  End end(int peer, int slot, Fields fields, int owner, int done_by) const {
    return {peer,   slot, fields, {0, problem_.layout.rows(owner)}, {0, problem_.heads.kv_heads},
            done_by};
  }

  // Keys travel one step ahead of their use.
  void pass_keys(Step& step, int s) const {
    const int leaving = origin(s), arriving = origin(s + 1);
    if (problem_.layout.rows(leaving) > 0) {
      End out = end(next(), slot_at(s), kKeys, leaving, s + 1);
      out.origin = leaving;
      add_send(step, out);
    }
    if (problem_.layout.rows(arriving) > 0) {
      End in = end(previous(), slot_at(s + 1), kKeys, arriving, s + 1);
      in.origin = arriving;
      add_receive(step, in, Reduce::kStore);
    }
  }

  // Gradients travel one step behind: what the previous rank has for the keys of step s is added to
  // this rank's contribution of step s, and the sum leaves during step s + 1.
  void pass_gradients(Step& step, int s) const {
    const int leaving = origin(s - 1), here = origin(s);
    if (s < ranks_ && problem_.layout.rows(here) > 0) {
      step.clears.push_back({slot_at(s), kKeyGradients});
    }
    if (s < 2) return;  // the first neighbour starts the sum
    if (problem_.layout.rows(leaving) > 0) {
      add_send(step, end(next(), slot_at(s - 1), kKeyGradients, leaving, s + 1));
    }
    if (problem_.layout.rows(here) > 0) {
      add_receive(step, end(previous(), s == ranks_ ? 0 : slot_at(s), kKeyGradients, here, s + 1),
                  Reduce::kAdd);
    }
  }

  const Problem& problem_;
  Direction direction_;
  int rank_;
  int ranks_;
};

}  // namespace

Plan plan_ring(const Problem& problem, Direction direction, int rank) {
  return Ring(problem, direction, rank).plan();
}

}  // namespace longhaul::parallel
