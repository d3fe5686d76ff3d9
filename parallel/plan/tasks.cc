#include <algorithm>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"

namespace longhaul::parallel {

namespace {

// Rows that tasks of one server need of one owner, for heads that all need the same rows: what is
// sent once, and lies in one slot of the server, range after range.
struct Parcel {
  Span heads;
  std::vector<Span> home_rows;  // ascending, disjoint

  int64_t rows() const {
    int64_t sum = 0;
    for (Span span : home_rows) sum += span.length;
    return sum;
  }
  // Where a home row that is in the parcel lies in its slot.
  int64_t slot_row(int64_t home_row) const {
    int64_t begin = 0;
    for (Span span : home_rows) {
      if (home_row < span.end()) return begin + home_row - span.begin;
      begin += span.length;
    }
    check_failed(__FILE__, __LINE__, "a task's rows are in its parcel");
  }
};

struct Need {
  Span rows;
  Span heads;
};

// Cuts the needed rows x heads into parcels, such that nothing is in two of them.
std::vector<Parcel> parcels_of(const std::vector<Need>& needs) {
  std::vector<int64_t> cuts;
  for (const Need& need : needs) {
    cuts.push_back(need.heads.begin);
    cuts.push_back(need.heads.end());
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<Parcel> parcels;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    std::vector<Span> rows;
    for (const Need& need : needs) {
      if (need.heads.begin <= cuts[i] && cuts[i] < need.heads.end()) rows.push_back(need.rows);
    }
    if (rows.empty()) continue;
    rows = joined(std::move(rows));
    if (!parcels.empty() && parcels.back().heads.end() == cuts[i] &&
        parcels.back().home_rows == rows) {
      parcels.back().heads.length += cuts[i + 1] - cuts[i];
    } else {
      parcels.push_back({{cuts[i], cuts[i + 1] - cuts[i]}, std::move(rows)});
    }
  }
  return parcels;
}

class Tasks {
 public:
  Tasks(const Problem& problem, Direction direction, const std::vector<PlacedTask>& tasks, int rank)
      : problem_(problem), direction_(direction), rank_(rank), ranks_(problem.layout.ranks()) {
    for (const PlacedTask& task : tasks) {
      check(task);
      if (task.q_owner != rank_ && task.k_owner != rank_ && task.server != rank_) continue;
      if (!cut_task(problem_, task, 0, 0).empty()) tasks_.push_back(task);
    }
  }

  Plan plan() {
    plan_.slots.push_back(home_slot(problem_, direction_, rank_));
    plan_.steps.resize(3);
    plan_.steps[0].clears.push_back({0, home_outputs(direction_)});
    for (int peer = 0; peer < ranks_; ++peer) {
      if (peer == rank_) continue;
      send_and_take_back(peer);
      receive_and_give_back(peer);
    }
    place_tasks();
    return std::move(plan_);
  }

 private:
  struct Side {  // of a slot that holds one parcel
    Parcel parcel;
    int slot;
  };

  void check(const PlacedTask& task) const {
    const auto is_rank = [this](int rank) { return rank >= 0 && rank < ranks_; };
    LONGHAUL_CHECK(is_rank(task.q_owner) && is_rank(task.k_owner) && is_rank(task.server),
                   absl::StrCat("task of ranks ", task.q_owner, ", ", task.k_owner, ", ",
                                task.server, " of ", ranks_));
    const auto within = [](Span span, int64_t limit) {
      return span.begin >= 0 && span.length >= 0 && span.end() <= limit;
    };
    LONGHAUL_CHECK(within(task.q_rows, problem_.layout.rows(task.q_owner)) &&
                       within(task.k_rows, problem_.layout.rows(task.k_owner)) &&
                       within(task.q_heads, problem_.heads.q_heads),
                   "a task leaves its owner's rows or the model's heads");
  }

  // The same on both ends, as both know all tasks between them.
  std::vector<Parcel> query_parcels(int owner, int server) const {
    std::vector<Need> needs;
    for (const PlacedTask& task : tasks_) {
      if (task.q_owner == owner && task.server == server) {
        needs.push_back({task.q_rows, task.q_heads});
      }
    }
    return parcels_of(needs);
  }
  std::vector<Parcel> key_parcels(int owner, int server) const {
    std::vector<Need> needs;
    for (const PlacedTask& task : tasks_) {
      if (task.k_owner == owner && task.server == server) {
        needs.push_back({task.k_rows, kv_heads_of(task.q_heads, problem_.heads)});
      }
    }
    return parcels_of(needs);
  }

  void send_and_take_back(int server) {
    Step &dispatch = plan_.steps[0], &back = plan_.steps[2];
    for (const Parcel& parcel : query_parcels(rank_, server)) {
      for (Span rows : parcel.home_rows) {
        add_send(dispatch, {server, 0, query_inputs(direction_), rows, parcel.heads, 1});
        add_receive(back, {server, 0, query_outputs(direction_), rows, parcel.heads, 3},
                    forward() ? Reduce::kMerge : Reduce::kAdd);
      }
    }
    for (const Parcel& parcel : key_parcels(rank_, server)) {
      for (Span rows : parcel.home_rows) {
        add_send(dispatch, {server, 0, kKeys, rows, parcel.heads, 1});
        if (forward()) continue;
        add_receive(back, {server, 0, kKeyGradients, rows, parcel.heads, 3}, Reduce::kAdd);
      }
    }
  }

  void receive_and_give_back(int owner) {
    Step &dispatch = plan_.steps[0], &compute = plan_.steps[1], &back = plan_.steps[2];
    for (Parcel& parcel : query_parcels(owner, rank_)) {
      const int slot = static_cast<int>(plan_.slots.size());
      plan_.slots.push_back({.q_rows = parcel.rows(),
                             .k_rows = 0,
                             .q_heads = parcel.heads,
                             .kv_heads = {},
                             .fields = query_inputs(direction_) | query_outputs(direction_)});
      compute.clears.push_back({slot, query_outputs(direction_)});
      int64_t row = 0;
      for (Span rows : parcel.home_rows) {
        const Span here{row, rows.length};
        add_receive(dispatch, {owner, slot, query_inputs(direction_), here, parcel.heads, 1},
                    Reduce::kStore);
        add_send(back, {owner, slot, query_outputs(direction_), here, parcel.heads, 3});
        row += rows.length;
      }
      query_slots_[owner].push_back({std::move(parcel), slot});
    }
    for (Parcel& parcel : key_parcels(owner, rank_)) {
      const int slot = static_cast<int>(plan_.slots.size());
      plan_.slots.push_back({.q_rows = 0,
                             .k_rows = parcel.rows(),
                             .q_heads = {},
                             .kv_heads = parcel.heads,
                             .fields = key_fields(direction_)});
      if (!forward()) compute.clears.push_back({slot, kKeyGradients});
      int64_t row = 0;
      for (Span rows : parcel.home_rows) {
        const Span here{row, rows.length};
        add_receive(dispatch, {owner, slot, kKeys, here, parcel.heads, 1}, Reduce::kStore);
        if (!forward()) add_send(back, {owner, slot, kKeyGradients, here, parcel.heads, 3});
        row += rows.length;
      }
      key_slots_[owner].push_back({std::move(parcel), slot});
    }
  }

  // A task's heads may lie in several slots, on either side: it is cut by heads.
  void place_tasks() {
    struct Key {
      bool remote;
      int q_slot, k_slot;
      Span heads;
      auto order() const { return std::tuple(remote, q_slot, k_slot, heads.begin, heads.length); }
      bool operator<(const Key& other) const { return order() < other.order(); }
    };
    std::map<Key, std::vector<Segment>> merged;
    const Side home{{}, 0};
    for (const PlacedTask& task : tasks_) {
      if (task.server != rank_) continue;
      for (Span q_heads : head_cuts(task)) {
        const Side& q = side(query_slots_, task.q_owner, q_heads, task.q_rows, home);
        const Side& k =
            side(key_slots_, task.k_owner, kv_heads_of(q_heads, problem_.heads), task.k_rows, home);
        const int64_t q_row =
            q.slot == 0 ? task.q_rows.begin : q.parcel.slot_row(task.q_rows.begin);
        const int64_t k_row =
            k.slot == 0 ? task.k_rows.begin : k.parcel.slot_row(task.k_rows.begin);
        std::vector<Segment>& list = merged[{q.slot != 0 || k.slot != 0, q.slot, k.slot, q_heads}];
        for (const Segment& segment : cut_task(problem_, task, q_row, k_row))
          list.push_back(segment);
      }
    }
    // What needs nothing of others is computed while the parcels travel.
    for (auto& [key, list] : merged) {
      plan_.steps[key.remote ? 1 : 0].tasks.push_back(
          {key.q_slot, key.k_slot, key.heads, std::move(list)});
    }
  }

  // The task's query heads, cut where a parcel of its queries or keys begins or ends.
  std::vector<Span> head_cuts(const PlacedTask& task) const {
    std::vector<int64_t> cuts{task.q_heads.begin, task.q_heads.end()};
    const auto cut = [&](int64_t head) {
      if (head > task.q_heads.begin && head < task.q_heads.end()) cuts.push_back(head);
    };
    if (auto it = query_slots_.find(task.q_owner); it != query_slots_.end()) {
      for (const Side& s : it->second) {
        cut(s.parcel.heads.begin);
        cut(s.parcel.heads.end());
      }
    }
    if (auto it = key_slots_.find(task.k_owner); it != key_slots_.end()) {
      for (const Side& s : it->second) {
        cut(s.parcel.heads.begin * problem_.heads.group());
        cut(s.parcel.heads.end() * problem_.heads.group());
      }
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    std::vector<Span> spans;
    for (size_t i = 0; i + 1 < cuts.size(); ++i) spans.push_back({cuts[i], cuts[i + 1] - cuts[i]});
    return spans;
  }

  const Side& side(const std::map<int, std::vector<Side>>& slots, int owner, Span heads, Span rows,
                   const Side& home) const {
    if (owner == rank_) return home;
    for (const Side& s : slots.at(owner)) {
      if (s.parcel.heads.begin <= heads.begin && heads.end() <= s.parcel.heads.end()) return s;
    }
    check_failed(__FILE__, __LINE__, "a task's heads are in a parcel",
                 absl::StrCat("rows ", rows.begin, " + ", rows.length, " of rank ", owner));
  }

  bool forward() const { return direction_ == Direction::kForward; }

  const Problem& problem_;
  Direction direction_;
  int rank_;
  int ranks_;
  std::vector<PlacedTask> tasks_;  // those with work that concern this rank
  std::map<int, std::vector<Side>> query_slots_, key_slots_;  // by owner
  Plan plan_;
};

}  // namespace

std::vector<Segment> cut_task(const Problem& problem, const PlacedTask& task, int64_t q_row,
                              int64_t k_row) {
  if (task.q_heads.length == 0) return {};
  const TokenLayout& layout = problem.layout;
  return cut_segments(slice(layout.runs(task.q_owner), task.q_rows.begin, task.q_rows.length),
                      slice(layout.runs(task.k_owner), task.k_rows.begin, task.k_rows.length),
                      problem.documents, problem.mask, q_row, k_row);
}

Plan plan_tasks(const Problem& problem, Direction direction, const std::vector<PlacedTask>& tasks,
                int rank) {
  return Tasks(problem, direction, tasks, rank).plan();
}

}  // namespace longhaul::parallel
