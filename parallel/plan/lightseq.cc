#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/pipeline.h"

namespace longhaul::parallel {

namespace {

// Whether a query may see a key at a later position.
bool looks_ahead(const Mask& mask) { return !mask.causal; }

// Whether all rows of a rank come before all rows of the next: then no query sees a key of a higher
// rank, and every key of a lower rank is in its past.
bool is_contiguous(const TokenLayout& layout) {
  int64_t end = 0;
  for (int r = 0; r < layout.ranks(); ++r) {
    int64_t last = end - 1;
    for (const Run& run : layout.runs(r)) {
      if (run.length == 0) continue;
      if (run.global_begin < end) return false;
      last = std::max(last, run.position(run.length - 1));
    }
    end = last + 1;
  }
  return true;
}

class LightSeq {
 public:
  LightSeq(const Problem& problem, Direction direction, int rank)
      : problem_(problem),
        direction_(direction),
        rank_(rank),
        ranks_(problem.layout.ranks()),
        rounds_(ranks_ / 2) {}

  Plan plan() const {
    const int own = std::min(rank_, rounds_);  // rounds on own queries; in the others it helps
    Pipeline pipeline(problem_, direction_, rank_,
                      {.keys = std::min(2, own), .queries = std::min(2, rounds_ - own)});
    pipeline.add(0, block(rank_, rank_, rank_));
    for (int t = 1; t <= rounds_; ++t) {
      pipeline.add(t, task(t, rank_));                 // computed here
      pipeline.add(t, task(t, (rank_ + t) % ranks_));  // with rows from here
    }
    return pipeline.finish();
  }

 private:
  // What a rank computes in round t, with rows of rank (server - t) modulo P: its own queries, or
  // its keys for queries that lack them.
  PlacedTask task(int t, int server) const {
    const bool helps = server < t;
    const int other = (server - t + ranks_) % ranks_;
    PlacedTask task = helps ? block(other, server, server) : block(server, other, server);
    // An even number of ranks: helper and helped would compute the same block.
    if (2 * t == ranks_) {
      const int64_t middle = middle_row(task);
      task.q_rows = helps ? Span{0, middle} : Span{middle, task.q_rows.length - middle};
    }
    return task;
  }

  PlacedTask block(int q_owner, int k_owner, int server) const {
    return {.q_owner = q_owner,
            .q_rows = {0, problem_.layout.rows(q_owner)},
            .k_owner = k_owner,
            .k_rows = {0, problem_.layout.rows(k_owner)},
            .q_heads = {0, problem_.heads.q_heads},
            .server = server};
  }

  // The first row up to which half of a block's work is done.
  int64_t middle_row(const PlacedTask& block) const {
    const std::vector<Segment> segments = cut_task(problem_, block, 0, 0);
    const auto work_before = [&](int64_t row) {
      int64_t work = 0;
      for (Segment s : segments) {
        s.q_len = std::clamp<int64_t>(row - s.q_row, 0, s.q_len);
        work += area(s);
      }
      return work;
    };
    const int64_t all = work_before(block.q_rows.length);
    int64_t low = 0, high = block.q_rows.length;
    while (low < high) {
      const int64_t row = low + (high - low) / 2;
      (2 * work_before(row) < all ? low = row + 1 : high = row);
    }
    return low;
  }

  const Problem& problem_;
  Direction direction_;
  int rank_;
  int ranks_;
  int rounds_;
};

}  // namespace

std::optional<std::string> lightseq_refusal(const Problem& problem) {
  if (looks_ahead(problem.mask)) {
    return "strategy lightseq needs a mask in which no query sees a later token, but got one that "
           "looks ahead; make the mask causal, or use strategy group_cast";
  }
  if (!is_contiguous(problem.layout)) {
    return "strategy lightseq needs each rank's tokens to come before the next rank's, but got a "
           "layout that mixes them; use layout contiguous, or use strategy group_cast";
  }
  return std::nullopt;
}

Plan plan_lightseq(const Problem& problem, Direction direction, int rank) {
  if (auto refusal = lightseq_refusal(problem)) fail(ErrorCode::kConfig, *refusal);
  return LightSeq(problem, direction, rank).plan();
}

}  // namespace longhaul::parallel
