#include <algorithm>

#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"

namespace longhaul::parallel {

namespace {

// A run of one rank and where it lies in the slot that holds all rows of the sample.
struct Piece {
  int rank;
  Span home_rows;
  Run run;
  int64_t row = 0;
};

// All non-empty runs in order of position, so that runs of stride 1 join to one range of rows.
std::vector<Piece> gathered(const TokenLayout& layout) {
  std::vector<Piece> pieces;
  for (int r = 0; r < layout.ranks(); ++r) {
    int64_t row = 0;
    for (const Run& run : layout.runs(r)) {
      if (run.length > 0) pieces.push_back({r, {row, run.length}, run});
      row += run.length;
    }
  }
  std::sort(pieces.begin(), pieces.end(),
            [](const Piece& a, const Piece& b) { return a.run.global_begin < b.run.global_begin; });
  int64_t row = 0;
  for (Piece& piece : pieces) {
    piece.row = row;
    row += piece.run.length;
  }
  return pieces;
}

class Ulysses {
 public:
  Ulysses(const Problem& problem, Direction direction, int rank)
      : problem_(problem),
        direction_(direction),
        rank_(rank),
        ranks_(problem.layout.ranks()),
        pieces_(gathered(problem.layout)) {}

  Plan plan() const {
    const bool forward = direction_ == Direction::kForward;
    const Fields outputs = query_outputs(direction_);
    Plan plan;
    plan.slots = {home_slot(problem_, direction_, rank_), gathered_slot()};
    plan.steps.resize(3);

    Step& scatter = plan.steps[0];
    scatter.clears.push_back({0, home_outputs(direction_)});
    give(scatter, query_inputs(direction_), 1);
    give(scatter, kKeys, 1);
    take(scatter, query_inputs(direction_), 1);
    take(scatter, kKeys, 1);

    const Slot& all = plan.slots[1];
    if (all.q_heads.length > 0) {
      Step& compute = plan.steps[1];
      compute.clears.push_back({1, forward ? outputs : outputs | kKeyGradients});
      RunList runs;
      for (const Piece& piece : pieces_) runs.push_back(piece.run);
      std::vector<Segment> segments = cut_segments(runs, runs, problem_.documents, problem_.mask);
      if (!segments.empty()) compute.tasks.push_back({1, 1, all.q_heads, std::move(segments)});
    }

    Step& back = plan.steps[2];
    give_back(back, outputs, 3);
    if (!forward) give_back(back, kKeyGradients, 3);
    take_back(back, outputs, Reduce::kStore, 3);
    // Several ranks may contribute to one kv head: they are added in order of rank.
    if (!forward) take_back(back, kKeyGradients, Reduce::kAdd, 3);
    return plan;
  }

 private:
  Span heads_of(int rank, Fields fields) const {
    const Span q_heads = even_part(problem_.heads.q_heads, ranks_, rank);
    return fields.intersects(kKeys | kKeyGradients) ? kv_heads_of(q_heads, problem_.heads)
                                                    : q_heads;
  }

  Slot gathered_slot() const {
    const int64_t rows = heads_of(rank_, {Field::kQ}).length > 0 ? problem_.layout.tokens() : 0;
    return {
        .q_rows = rows,
        .k_rows = rows,
        .q_heads = heads_of(rank_, {Field::kQ}),
        .kv_heads = heads_of(rank_, kKeys),
        .fields = query_inputs(direction_) | query_outputs(direction_) | key_fields(direction_)};
  }

  // Both ends list the transfers of a pair of ranks by fields, then by piece: they match in order.

  // Home rows to everybody, each with its heads.
  void give(Step& step, Fields fields, int done_by) const {
    for (int peer = 0; peer < ranks_; ++peer) {
      for (const Piece& piece : pieces_) {
        if (piece.rank != rank_ || heads_of(peer, fields).length == 0) continue;
        add_send(step, {peer, 0, fields, piece.home_rows, heads_of(peer, fields), done_by});
      }
    }
  }
  // This rank's heads of everybody's rows.
  void take(Step& step, Fields fields, int done_by) const {
    const Span heads = heads_of(rank_, fields);
    if (heads.length == 0) return;
    for (const Piece& piece : pieces_) {
      add_receive(step, {piece.rank, 1, fields, {piece.row, piece.run.length}, heads, done_by},
                  Reduce::kStore);
    }
  }
  void give_back(Step& step, Fields fields, int done_by) const {
    const Span heads = heads_of(rank_, fields);
    if (heads.length == 0) return;
    for (const Piece& piece : pieces_) {
      add_send(step, {piece.rank, 1, fields, {piece.row, piece.run.length}, heads, done_by});
    }
  }
  void take_back(Step& step, Fields fields, Reduce reduce, int done_by) const {
    for (int peer = 0; peer < ranks_; ++peer) {
      for (const Piece& piece : pieces_) {
        if (piece.rank != rank_ || heads_of(peer, fields).length == 0) continue;
        add_receive(step, {peer, 0, fields, piece.home_rows, heads_of(peer, fields), done_by},
                    reduce);
      }
    }
  }

  const Problem& problem_;
  Direction direction_;
  int rank_;
  int ranks_;
  std::vector<Piece> pieces_;
};

}  // namespace

Plan plan_ulysses(const Problem& problem, Direction direction, int rank) {
  return Ulysses(problem, direction, rank).plan();
}

}  // namespace longhaul::parallel
