#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/gathered.h"
#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"

namespace longhaul::parallel {

namespace {

// Ranges of kv heads follow each other: range i is gathered during step i, into two slots in turn,
// computed during step i + 1, and its gradients return during step i + 2.
class AllGather {
 public:
  AllGather(const Problem& problem, Direction direction, int rank)
      : problem_(problem),
        direction_(direction),
        rank_(rank),
        ranges_(range_count(problem)),
        pieces_(gathered(problem.layout, 0, problem.layout.ranks())) {
    for (const Piece& piece : pieces_) {
      if (piece.rank == rank_) own_.push_back(piece);
    }
    for (int r = 0; r < problem.layout.ranks(); ++r) {
      if (problem.layout.rows(r) > 0) peers_.push_back(r);
    }
  }

  Plan plan() const {
    const bool backward = direction_ == Direction::kBackward;
    Plan plan;
    plan.slots.push_back(home_slot(problem_, direction_, rank_));
    if (problem_.layout.rows(rank_) == 0) return plan;  // neither has keys nor needs any
    plan.steps.resize(static_cast<size_t>(ranges_ + (backward ? 2 : 1)));
    plan.steps.front().clears.push_back({0, home_outputs(direction_)});
    Step whole;  // of the mask: the segments are the same for all heads
    add_task(whole, problem_, {}, problem_.layout.runs(rank_), runs_of(pieces_));
    for (int i = 0; i < ranges_; ++i) {
      const int slot = 1 + i;
      plan.slots.push_back(range_slot(i));
      gather(plan.steps[static_cast<size_t>(i)], i);
      Step& compute = plan.steps[static_cast<size_t>(i + 1)];
      if (backward) compute.clears.push_back({slot, kKeyGradients});
      for (const Task& task : whole.tasks) {
        compute.tasks.push_back({0, slot, q_heads(i), task.segments});
      }
      if (backward) reduce_scatter(plan.steps[static_cast<size_t>(i + 2)], i);
    }
    return plan;
  }

 private:
  static int range_count(const Problem& problem) {
    const int64_t kv_heads = problem.heads.kv_heads;
    const int64_t at_once = problem.gather_heads > 0 ? problem.gather_heads : (kv_heads + 3) / 4;
    return static_cast<int>((kv_heads + at_once - 1) / at_once);
  }
  Span kv_heads(int range) const { return even_part(problem_.heads.kv_heads, ranges_, range); }
  Span q_heads(int range) const {
    const Span heads = kv_heads(range);
    return {heads.begin * problem_.heads.group(), heads.length * problem_.heads.group()};
  }

  // The first ranges have the most heads, so that the others can take over their memory in turn.
  Slot range_slot(int range) const {
    return {.q_rows = 0,
            .k_rows = problem_.layout.tokens(),
            .q_heads = {},
            .kv_heads = kv_heads(range),
            .fields = key_fields(direction_),
            .memory_of = range < 2 ? -1 : 1 + range % 2};
  }

  void gather(Step& step, int range) const {
    const int slot = 1 + range, done_by = range + 1;
    for (int peer : peers_) {
      for (const Piece& piece : own_) {
        add_send(step, {peer, 0, kKeys, piece.home_rows, kv_heads(range), done_by});
      }
    }
    for (const Piece& piece : pieces_) {
      add_receive(step, {piece.rank, slot, kKeys, piece.slot_rows(), kv_heads(range), done_by},
                  Reduce::kStore);
    }
  }

  // Every rank's part of the gradients goes home; there the parts are added in order of rank.
  void reduce_scatter(Step& step, int range) const {
    const int slot = 1 + range, done_by = range + 3;
    for (const Piece& piece : pieces_) {
      add_send(step,
               {piece.rank, slot, kKeyGradients, piece.slot_rows(), kv_heads(range), done_by});
    }
    for (int peer : peers_) {
      for (const Piece& piece : own_) {
        add_receive(step, {peer, 0, kKeyGradients, piece.home_rows, kv_heads(range), done_by},
                    Reduce::kAdd);
      }
    }
  }

  const Problem& problem_;
  Direction direction_;
  int rank_;
  int ranges_;
  std::vector<Piece> pieces_;
  std::vector<Piece> own_;  // of this rank
  std::vector<int> peers_;  // ranks with rows, this one included
};

}  // namespace

std::optional<std::string> all_gather_refusal(const Problem& problem) {
  if (problem.gather_heads >= 0) return std::nullopt;
  return absl::StrCat("strategy all_gather cannot gather ", problem.gather_heads,
                      " kv heads at a time; give 1 or more, or 0 to have it chosen");
}

Plan plan_all_gather(const Problem& problem, Direction direction, int rank) {
  if (auto refusal = all_gather_refusal(problem)) fail(ErrorCode::kConfig, *refusal);
  return AllGather(problem, direction, rank).plan();
}

}  // namespace longhaul::parallel
