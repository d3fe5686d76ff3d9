#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/pipeline.h"

namespace longhaul::parallel {

namespace {

// Whether a query may see a key at a later position.
bool looks_ahead(const Mask& mask) { return !mask.causal || mask.prefix > 0; }

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
    Pipeline pipeline(problem_, direction_, rank_);
    pipeline.add(0, block(rank_, rank_, rank_));
    // Two buffers in turn for keys of others, and two for queries, as far as there are such rounds;
    // the shared block has its own, for its heads alone.
    std::vector<int> buffers[2];
    for (int t = 1; t <= rounds_; ++t) {
      const PlacedTask served = task(t, rank_);
      std::vector<int>& turn = buffers[helps(t, rank_) ? 1 : 0];
      if (turn.size() < 2 || is_shared(t)) {
        turn.push_back(pipeline.add_buffer(served));
      } else {
        std::swap(turn[0], turn[1]);
      }
      pipeline.add(t, served, turn.back());
      pipeline.add(t, task(t, (rank_ + t) % ranks_));  // with rows from here
    }
    return pipeline.finish();
  }

 private:
  static bool helps(int t, int rank) { return rank < t; }
  // Whether helper and helped would compute the same block.
  bool is_shared(int t) const { return 2 * t == ranks_; }

  // What a rank computes in round t, with rows of rank (server - t) modulo P: its own queries, or
  // its keys for queries that lack them.
  PlacedTask task(int t, int server) const {
    const int other = (server - t + ranks_) % ranks_;
    PlacedTask task =
        helps(t, server) ? block(other, server, server) : block(server, other, server);
    if (is_shared(t)) {
      const int64_t heads = problem_.heads.q_heads, half = heads / 2;
      task.q_heads = helps(t, server) ? Span{0, half} : Span{half, heads - half};
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
