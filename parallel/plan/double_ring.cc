#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"

namespace longhaul::parallel {

namespace {

// Rank = node * ranks_per_node + place. Outer round t, inner round u: this rank works on the keys
// of (node - t, place - u), both modulo their number; that is step t * ranks_per_node + u. The keys
// of round (t, 0), the "base" keys, come from the previous node; those of u > 0 from the left
// neighbour within the node.
class DoubleRing {
 public:
  DoubleRing(const Problem& problem, Direction direction, int rank)
      : problem_(problem),
        direction_(direction),
        inner_(problem.ranks_per_node),
        outer_(problem.layout.ranks() / inner_),
        node_(rank / inner_),
        place_(rank % inner_),
        rank_(rank) {}

  Plan plan() {
    plan_.slots.push_back(home_slot(problem_, direction_, rank_));
    plan_.slots.resize(static_cast<size_t>(inner_slot() + std::min(2, inner_ - 1)),
                       key_buffer(problem_, direction_));
    plan_.steps.resize(static_cast<size_t>(step_count()));
    plan_.steps.front().clears.push_back({0, home_outputs(direction_)});
    for (int t = 0; t < outer_; ++t) {
      for (int u = 0; u < inner_; ++u) round(t, u);
    }
    if (backward()) pass_gradients();
    plan_.home_readers = all_other_readers(problem_, rank_);
    return std::move(plan_);
  }

 private:
  // Slots: home, up to two for base keys in turn, up to two for the inner ring in turn.
  bool backward() const { return direction_ == Direction::kBackward; }
  Step& step(int index) { return plan_.steps[static_cast<size_t>(index)]; }
  int step_of(int t, int u) const { return t * inner_ + u; }
  int base_slot(int t) const { return t == 0 ? 0 : 1 + (t - 1) % 2; }
  int inner_slot() const { return 1 + std::min(2, outer_ - 1); }
  int slot_at(int t, int u) const { return u == 0 ? base_slot(t) : inner_slot() + (u - 1) % 2; }

  int at(int node, int place) const {
    return (node % outer_ + outer_) % outer_ * inner_ + (place % inner_ + inner_) % inner_;
  }
  int origin(int t, int u) const { return at(node_ - t, place_ - u); }

  // The gradients of round t's base keys are whole for this node once the inner ring's last hop has
  // been folded: one step into the next outer round, or at its start if there is no inner ring.
  int base_leaves(int t) const { return step_of(t + 1, inner_ > 1 ? 1 : 0); }

  int step_count() const {
    const int work = outer_ * inner_;
    if (!backward()) return work;
    if (outer_ > 1) return base_leaves(outer_ - 1) + 1;
    return work + (inner_ > 1 ? 1 : 0);
  }

  // One hop, if there are rows: `leaving` goes out and `arriving` comes in during step `from`.
  struct Hop {
    int from;
    int done_by;
    int to_peer, from_peer;
    int leaving, leaving_slot;
    int arriving, arriving_slot;
  };
  void hop(const Hop& h, Fields fields, Reduce reduce) {
    const bool keys = fields == kKeys;
    const Span heads{0, problem_.heads.kv_heads};
    if (const int64_t rows = problem_.layout.rows(h.leaving); rows > 0) {
      add_send(
          step(h.from),
          {h.to_peer, h.leaving_slot, fields, {0, rows}, heads, h.done_by, keys ? h.leaving : -1});
    }
    if (const int64_t rows = problem_.layout.rows(h.arriving); rows > 0) {
      add_receive(step(h.from),
                  {h.from_peer,
                   h.arriving_slot,
                   fields,
                   {0, rows},
                   heads,
                   h.done_by,
                   keys ? h.arriving : -1},
                  reduce);
    }
  }

  void round(int t, int u) {
    const int now = step_of(t, u);
    if (u == 0 && t + 1 < outer_) {  // has a whole inner ring's time
      hop({now, step_of(t + 1, 0), at(node_ + 1, place_), at(node_ - 1, place_), origin(t, 0),
           base_slot(t), origin(t + 1, 0), base_slot(t + 1)},
          kKeys, Reduce::kStore);
    }
    if (u + 1 < inner_) {
      hop({now, now + 1, at(node_, place_ + 1), at(node_, place_ - 1), origin(t, u), slot_at(t, u),
           origin(t, u + 1), slot_at(t, u + 1)},
          kKeys, Reduce::kStore);
    }
    if (backward() && now > 0 && problem_.layout.rows(origin(t, u)) > 0) {
      step(now).clears.push_back({slot_at(t, u), kKeyGradients});
    }
    add_ring_task(step(now), problem_, rank_, origin(t, u), slot_at(t, u));
  }

  void pass_gradients() {
    // Within a node: the sum for (t, 0)'s owner place starts at its right neighbour and ends in the
    // base slot of the rank that holds the base keys (at t = 0: their home).
    for (int t = 0; t < outer_; ++t) {
      for (int u = 2; u <= inner_; ++u) {
        const int now = step_of(t, u);
        hop({now, now + 1, at(node_, place_ + 1), at(node_, place_ - 1), origin(t, u - 1),
             slot_at(t, u - 1), origin(t, u), u == inner_ ? base_slot(t) : slot_at(t, u)},
            kKeyGradients, Reduce::kAdd);
      }
    }
    // Between nodes: from the first neighbour on, in the time of an inner ring; the last hop home.
    for (int t = 1; t < outer_; ++t) {
      const bool last = t + 1 == outer_;
      const int now = base_leaves(t);
      hop({now, last ? now + 1 : std::max(now + 1, step_of(t + 2, 0)), at(node_ + 1, place_),
           at(node_ - 1, place_), origin(t, 0), base_slot(t), origin(t + 1, 0),
           last ? 0 : base_slot(t + 1)},
          kKeyGradients, Reduce::kAdd);
    }
  }

  const Problem& problem_;
  Direction direction_;
  int inner_;
  int outer_;
  int node_;
  int place_;
  int rank_;
  Plan plan_;
};

}  // namespace

std::optional<std::string> double_ring_refusal(const Problem& problem) {
  const int ranks = problem.layout.ranks(), per_node = problem.ranks_per_node;
  if (per_node >= 1 && ranks % per_node == 0) return std::nullopt;
  return absl::StrCat(
      "strategy double_ring needs a number of sequence ranks that its ranks per "
      "node divide, but got ",
      ranks, " ranks and ", per_node, " per node; change either, or use strategy ring");
}

Plan plan_double_ring(const Problem& problem, Direction direction, int rank) {
  if (auto refusal = double_ring_refusal(problem)) fail(ErrorCode::kConfig, *refusal);
  return DoubleRing(problem, direction, rank).plan();
}

}  // namespace longhaul::parallel
