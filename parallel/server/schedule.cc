#include "parallel/server/schedule.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/parts.h"
#include "parallel/server/cut.h"
#include "parallel/server/rounds.h"
#include "parallel/server/schedule_of.h"
#include "parallel/server/start.h"

namespace longhaul::parallel {

namespace {

// Of a server's pieces, those that a move may be cut from: the costliest.
constexpr size_t kMostConsidered = 8;

struct Move {
  size_t index = 0;  // of the work that it is cut from
  Cut cut;
  double cost = 0;
  double score = 0;  // cost for each byte that it adds
};

class Balancer {
 public:
  Balancer(const Problem& problem, Placement& placement)
      : problem_(problem), placement_(placement) {
    double most_rate = 0;
    for (int s = 0; s < placement_.servers(); ++s) {
      for (const Work& work : placement_.work(s)) most_rate = std::max(most_rate, work.rate);
      mean_ += placement_.load(s) / placement_.servers();
    }
    const auto tile = static_cast<double>(problem_.servers.tile);
    tile_ = most_rate * tile * tile * static_cast<double>(problem_.heads.q_heads);
    stuck_.assign(static_cast<size_t>(placement_.servers()), false);
  }

  double tile() const { return tile_; }
  int64_t moves() const { return moves_; }
  bool limited() const { return limited_; }

  // A move takes at most what brings its source down to the goal, and at most what brings its
  // target up to it, or one tile: no target exceeds the bound, so every server passes it once at
  // most, downwards, and each move takes something off one that is above.
  void run() {
    while (true) {
      const int from = most_loaded();
      if (from < 0 || placement_.load(from) <= bound()) return;
      if (!move_from(from)) {
        stuck_[static_cast<size_t>(from)] = true;
        limited_ = true;
      }
    }
  }

 private:
  double goal() const { return (1 + problem_.servers.imbalance) * mean_; }
  // Sums of costs are not exact: a part in 10^9 of the mean may lie between two orders of them.
  double bound() const { return goal() + tile_ + 1e-9 * mean_; }

  int most_loaded() const {
    int most = -1;
    for (int s = 0; s < placement_.servers(); ++s) {
      if (stuck_[static_cast<size_t>(s)]) continue;
      if (most < 0 || placement_.load(s) > placement_.load(most)) most = s;
    }
    return most;
  }

  // To the least loaded server; where memory does not let it, to the next.
  bool move_from(int from) {
    std::vector<int> targets;
    const bool bounded = problem_.servers.buffer_bytes > 0;
    for (int s = 0; s < placement_.servers(); ++s) {
      if (s != from && placement_.load(s) <= goal()) targets.push_back(s);
    }
    const auto by_load = [this](int s) { return placement_.load(s); };
    if (!bounded && !targets.empty()) {
      targets = {*std::ranges::min_element(targets, {}, by_load)};
    } else {
      std::ranges::stable_sort(targets, {}, by_load);
    }
    for (int to : targets) {
      const double amount =
          std::min(placement_.load(from) - goal(), std::max(goal() - placement_.load(to), tile_));
      if (const auto move = best_move(from, to, amount)) {
        const Work work = placement_.take(from, move->index);
        placement_.place({part_of(work.piece, move->cut), work.rate}, to);
        for (const WorkPiece& rest : rest_of(work.piece, move->cut)) {
          placement_.place({rest, work.rate}, from);
        }
        ++moves_;
        return true;
      }
    }
    return false;
  }

  std::optional<Move> best_move(int from, int to, double amount) {
    const std::vector<Work>& list = placement_.work(from);
    std::vector<size_t> considered(list.size());
    std::iota(considered.begin(), considered.end(), size_t{0});
    if (considered.size() > kMostConsidered) {
      std::vector<double> costs;
      for (const Work& work : list) costs.push_back(work.cost());
      const auto costlier = [&](size_t a, size_t b) {
        return costs[a] != costs[b] ? costs[a] > costs[b] : a < b;
      };
      std::nth_element(considered.begin(), considered.begin() + kMostConsidered, considered.end(),
                       costlier);
      considered.resize(kMostConsidered);
      std::sort(considered.begin(), considered.end(), costlier);
    }
    std::optional<Move> best;
    for (size_t index : considered) consider_cuts(index, list[index], to, amount, best);
    if (!best) {  // a tile always is at most the amount
      for (size_t index : considered) {
        const WorkPiece& piece = list[index].piece;
        const int64_t tile = problem_.servers.tile;
        const IndexRange q{std::max<int64_t>(0, piece.band.q_len - tile), piece.band.q_len};
        const IndexRange seen = keys_seen(piece.band, q.begin, q.end);
        consider(index, list[index], to, amount,
                 {piece.heads, q, {seen.begin, std::min(seen.end, seen.begin + tile)}}, best);
      }
    }
    return best;
  }

  void consider_cuts(size_t index, const Work& work, int to, double amount,
                     std::optional<Move>& best) {
    const WorkPiece& piece = work.piece;
    const Segment& band = piece.band;
    const IndexRange all_q{0, band.q_len}, all_k{0, band.k_len};
    if (work.cost() <= amount) {
      consider(index, work, to, amount, {piece.heads, all_q, all_k}, best);
    }
    // Some heads: their queries and keys, nothing else.
    const int64_t group = problem_.heads.group();
    const double of_kv_head =
        work.cost() * static_cast<double>(group) / static_cast<double>(piece.heads.length);
    const int64_t kv_heads = piece.heads.length / group;
    const auto whole_heads = std::min(kv_heads - 1, static_cast<int64_t>(amount / of_kv_head));
    if (whole_heads > 0) {
      const int64_t length = whole_heads * group;
      consider(index, work, to, amount, {{piece.heads.begin, length}, all_q, all_k}, best);
      consider(index, work, to, amount, {{piece.heads.end() - length, length}, all_q, all_k}, best);
    }
    // Rows of all heads, or of those of one kv head, which are more rows.
    const double ratio =
        static_cast<double>(placement_.query_bytes()) / static_cast<double>(placement_.key_bytes());
    const IndexRange resident = placement_.resident_keys(piece, to);
    for (const int64_t heads : {piece.heads.length, group}) {
      const double pairs = amount / (work.rate * static_cast<double>(heads));
      const Span some{piece.heads.end() - heads, heads};
      const int64_t tile = problem_.servers.tile;
      const auto consider_band = [&](const std::optional<BandCut>& cut) {
        if (cut) consider(index, work, to, amount, {some, cut->queries, cut->keys}, best);
      };
      consider_band(last_queries(band, all_k, pairs, tile));
      consider_band(first_queries(band, all_k, pairs, tile));
      consider_band(block(band, ratio, pairs, tile));
      if (resident.begin < resident.end) {
        consider_band(last_queries(band, resident, pairs, tile));
        consider_band(first_queries(band, resident, pairs, tile));
      }
      if (kv_heads == 1) break;
    }
  }

  void consider(size_t index, const Work& work, int to, double amount, const Cut& cut,
                std::optional<Move>& best) {
    const WorkPiece part = part_of(work.piece, cut);
    if (part.band.q_len == 0) return;
    const double cost = Work{part, work.rate}.cost();
    if (cost > amount) return;
    const int64_t bytes = placement_.added_bytes(part, to);
    const double score =
        bytes == 0 ? std::numeric_limits<double>::infinity() : cost / static_cast<double>(bytes);
    if (best && (score < best->score || (score == best->score && cost <= best->cost))) return;
    if (!placement_.fits(part, to)) return;
    best = Move{index, cut, cost, score};
  }

  const Problem& problem_;
  Placement& placement_;
  double mean_ = 0, tile_ = 0;
  int64_t moves_ = 0;
  bool limited_ = false;
  std::vector<bool> stuck_;  // memory leaves nothing to move from it
};

int largest_memory(const Placement& placement, int ranks) {
  int most = 0;
  for (int r = 1; r < ranks; ++r) {
    if (placement.memory(r) > placement.memory(most)) most = r;
  }
  return most;
}

}  // namespace

Schedule schedule_tasks(const Problem& problem, Direction direction) {
  const int ranks = problem.layout.ranks();
  const int64_t limit = problem.servers.buffer_bytes;
  std::optional<Placement> placement;
  for (const Start start : {Start::kByWork, Start::kByRows}) {
    placement.emplace(problem, direction);
    place(problem, start, *placement);
    if (limit == 0 || placement->memory(largest_memory(*placement, ranks)) <= limit) break;
  }
  const int most = largest_memory(*placement, ranks);
  if (limit > 0 && placement->memory(most) > limit) {
    fail(ErrorCode::kConfig,
         absl::StrCat("servers' buffers of ", limit, " bytes are ", placement->memory(most) - limit,
                      " too small: rank ", most, " needs ", placement->memory(most),
                      " for rows of others, however little is moved; allow at least that many"));
  }
  Balancer balancer(problem, *placement);
  balancer.run();
  Schedule schedule = schedule_of(problem, direction, *placement);
  schedule.tile = balancer.tile();
  schedule.moves = balancer.moves();
  schedule.limited_by_memory = balancer.limited();
  schedule.most_counted = placement->memory(largest_memory(*placement, ranks));
  set_rounds(problem, schedule);
  return schedule;
}

int64_t enough_buffer_bytes(const Problem& problem) {
  Problem open = problem;
  open.servers.buffer_bytes = 0;
  int64_t most = 0;
  for (Direction direction : {Direction::kForward, Direction::kBackward}) {
    const Schedule schedule = schedule_tasks(open, direction);
    most = std::max({most, schedule.most_counted, std::ranges::max(schedule.memory)});
  }
  return most;
}

int64_t least_buffer_bytes(const Problem& problem) {
  Problem open = problem;
  open.mask = {.causal = false, .window = 0, .prefix = 0};
  open.servers.buffer_bytes = 0;
  int64_t most = 0;
  for (Direction direction : {Direction::kForward, Direction::kBackward}) {
    Placement placement(open, direction);
    place(open, Start::kByRows, placement);
    most = std::max(most, placement.memory(largest_memory(placement, open.layout.ranks())));
  }
  // Layouts for samples may have more and shorter runs.
  constexpr int64_t kMostRuns = 64;
  return most + kMostRuns * open.layout.ranks() * kRangeMargin;
}

}  // namespace longhaul::parallel
