#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/gathered.h"
#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"
#include "parallel/plan/ring_walk.h"

namespace longhaul::parallel {

namespace {

constexpr int kGathered = 1;  // the slot of this rank's heads of all rows of its group

// Groups of `width` consecutive ranks. Within a group rows are exchanged for heads; then the ranks
// with the same place in their groups, which have the same heads, form a ring.
class Usp {
 public:
  Usp(const Problem& problem, Direction direction, int rank, int width)
      : problem_(problem),
        direction_(direction),
        rank_(rank),
        width_(width),
        first_(rank - rank % width),
        q_heads_(q_heads_of(rank)),
        pieces_(gathered(problem.layout, first_, width)),
        walk_(ring()) {}

  Plan plan() const {
    const Fields outputs = query_outputs(direction_);
    Plan plan;
    plan.slots.push_back(home_slot(problem_, direction_, rank_));
    // Scatter, the ring, and back: dq need not wait for the last hop of dk and dv.
    const int keys_back = 1 + walk_.steps(), queries_back = 1 + walk_.size(), end = keys_back + 1;
    plan.steps.resize(static_cast<size_t>(end));

    Step& scatter = plan.steps[0];
    if (!forward()) scatter.clears.push_back({0, kKeyGradients});
    give(scatter, query_inputs(direction_), 1);
    give(scatter, kKeys, 1);
    if (q_heads_.length > 0) {
      add_slots(plan);
      take(scatter, query_inputs(direction_), 1);
      take(scatter, kKeys, 1);
      plan.steps[1].clears.push_back({kGathered, forward() ? outputs : outputs | kKeyGradients});
      walk_.add_to(plan, 1);
      for (int s = 0; s < walk_.size(); ++s)
        add_ring_task(plan.steps[static_cast<size_t>(1 + s)], s);
    }

    Step& back = plan.steps[static_cast<size_t>(queries_back)];
    give_back(back, outputs, end);
    take_back(back, outputs, Reduce::kStore, end);
    if (forward()) return plan;
    // Several ranks may contribute to one kv head: they are added in order of rank.
    give_back(plan.steps[static_cast<size_t>(keys_back)], kKeyGradients, end);
    take_back(plan.steps[static_cast<size_t>(keys_back)], kKeyGradients, Reduce::kAdd, end);
    return plan;
  }

 private:
  bool forward() const { return direction_ == Direction::kForward; }
  Span q_heads_of(int rank) const {
    return even_part(problem_.heads.q_heads, width_, rank % width_);
  }
  Span heads_of(int rank, Fields fields) const {
    return fields.intersects(kKeys | kKeyGradients) ? kv_heads_of(q_heads_of(rank), problem_.heads)
                                                    : q_heads_of(rank);
  }

  RingWalk ring() const {
    RingWalk walk;
    for (int first = 0; first < problem_.layout.ranks(); first += width_) {
      int64_t rows = 0;
      for (int r = first; r < first + width_; ++r) rows += problem_.layout.rows(r);
      walk.members.push_back({first + rank_ % width_, rows});
    }
    walk.place = rank_ / width_;
    walk.own_slot = kGathered;
    walk.first_buffer = kGathered + 1;
    walk.heads = kv_heads_of(q_heads_, problem_.heads);
    walk.visiting = kKeys;
    if (!forward()) walk.sums = kKeyGradients;
    return walk;
  }

  void add_slots(Plan& plan) const {
    const int64_t rows = std::min(problem_.layout.tokens(), width_ * problem_.layout.most_rows());
    Slot slot{.q_rows = 0,
              .k_rows = rows,
              .q_heads = {},
              .kv_heads = walk_.heads,
              .fields = key_fields(direction_)};
    plan.slots.resize(static_cast<size_t>(kGathered + 1 + walk_.buffers()), slot);
    Slot& own = plan.slots[kGathered];
    own.q_rows = rows;
    own.q_heads = q_heads_;
    own.fields = own.fields | query_inputs(direction_) | query_outputs(direction_);
  }

  // This rank's heads of its group's queries against the keys that visit at step s of the ring.
  void add_ring_task(Step& step, int s) const {
    const int visitor = walk_.visitor(s).rank;
    add_task(step, problem_, {kGathered, walk_.slot_at(s), q_heads_, {}}, runs_of(pieces_),
             runs_of(gathered(problem_.layout, visitor - visitor % width_, width_)));
  }

  // Both ends list the transfers of a pair of ranks by fields, then by piece: they match in order.

  // Home rows to all of the group, each with its heads.
  void give(Step& step, Fields fields, int done_by) const {
    for_each_part(fields, [&](int peer, Span rows, Span heads) {
      add_send(step, {peer, 0, fields, rows, heads, done_by});
    });
  }
  void take_back(Step& step, Fields fields, Reduce reduce, int done_by) const {
    for_each_part(fields, [&](int peer, Span rows, Span heads) {
      add_receive(step, {peer, 0, fields, rows, heads, done_by}, reduce);
    });
  }
  template <class F>
  void for_each_part(Fields fields, F&& visit) const {
    for (int peer = first_; peer < first_ + width_; ++peer) {
      const Span heads = heads_of(peer, fields);
      if (heads.length == 0) continue;
      for (const Piece& piece : pieces_) {
        if (piece.rank == rank_) visit(peer, piece.home_rows, heads);
      }
    }
  }

  // This rank's heads of everybody's rows.
  void take(Step& step, Fields fields, int done_by) const {
    for (const Piece& piece : pieces_) {
      add_receive(
          step,
          {piece.rank, kGathered, fields, piece.slot_rows(), heads_of(rank_, fields), done_by},
          Reduce::kStore);
    }
  }
  void give_back(Step& step, Fields fields, int done_by) const {
    if (q_heads_.length == 0) return;
    for (const Piece& piece : pieces_) {
      add_send(step, {piece.rank, kGathered, fields, piece.slot_rows(), heads_of(rank_, fields),
                      done_by});
    }
  }

  const Problem& problem_;
  Direction direction_;
  int rank_;
  int width_;
  int first_;  // rank of the group
  Span q_heads_;
  std::vector<Piece> pieces_;  // of the group
  RingWalk walk_;
};

}  // namespace

Plan plan_ulysses(const Problem& problem, Direction direction, int rank) {
  return Usp(problem, direction, rank, problem.layout.ranks()).plan();
}

std::optional<std::string> usp_refusal(const Problem& problem) {
  const int ranks = problem.layout.ranks(), per_node = problem.ranks_per_node;
  if (per_node >= 1 && ranks % per_node == 0) return std::nullopt;
  return absl::StrCat(
      "strategy usp needs a number of sequence ranks that its ranks per node divide, but got ",
      ranks, " ranks and ", per_node, " per node; change either, or use strategy ulysses or ring");
}

Plan plan_usp(const Problem& problem, Direction direction, int rank) {
  if (auto refusal = usp_refusal(problem)) fail(ErrorCode::kConfig, *refusal);
  // A group of one rank has nothing to exchange.
  if (problem.ranks_per_node == 1) return plan_ring(problem, direction, rank);
  return Usp(problem, direction, rank, problem.ranks_per_node).plan();
}

}  // namespace longhaul::parallel
