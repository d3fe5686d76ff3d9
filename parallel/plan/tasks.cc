#include <algorithm>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"

namespace longhaul::parallel {

namespace {

// Rows of a parcel that are needed in the same rounds.
struct Part {
  Span home_rows;
  int64_t slot_row = 0;
  int first = 0, last = 0;  // round
  bool operator==(const Part&) const = default;
};

// Rows that tasks of one server need of one owner from one round to another, for heads that all
// need the same rows: what is sent once, and lies in one slot of the server, part after part. So
// while a slot is computed on, none of its rows travels: kernels may read and write whole blocks of
// it.
struct Parcel {
  Span heads;
  std::vector<Part> parts;  // ascending, disjoint; of equal rounds

  int64_t rows() const { return parts.back().slot_row + parts.back().home_rows.length; }
};

struct Need {
  Span rows;
  Span heads;
  int round = 0;
};

// The union of the rows, cut where the first or the last round that needs them changes. Slot rows
// are not set yet.
std::vector<Part> parts_of(const std::vector<Need>& needs, int rounds) {
  struct Border {
    int64_t row;
    int round;
    int needs;  // more of this round from here on
  };
  std::vector<Border> borders;
  for (const Need& need : needs) {
    if (need.rows.length == 0) continue;
    borders.push_back({need.rows.begin, need.round, 1});
    borders.push_back({need.rows.end(), need.round, -1});
  }
  std::ranges::sort(borders, {}, &Border::row);
  std::vector<int> of_round(static_cast<size_t>(rounds), 0);
  std::vector<Part> parts;
  for (size_t i = 0; i < borders.size();) {
    const int64_t row = borders[i].row;
    for (; i < borders.size() && borders[i].row == row; ++i) {
      of_round[static_cast<size_t>(borders[i].round)] += borders[i].needs;
    }
    const auto needed = [](int count) { return count > 0; };
    const auto first = std::ranges::find_if(of_round, needed);
    if (first == of_round.end()) continue;
    const auto last = std::find_if(of_round.rbegin(), of_round.rend(), needed);
    const Part part{.home_rows = {row, borders[i].row - row},
                    .first = static_cast<int>(first - of_round.begin()),
                    .last = static_cast<int>(of_round.rend() - last) - 1};
    if (!parts.empty() && parts.back().home_rows.end() == row && parts.back().first == part.first &&
        parts.back().last == part.last) {
      parts.back().home_rows.length += part.home_rows.length;
    } else {
      parts.push_back(part);
    }
  }
  return parts;
}

// The parts that are needed from one round to another, one list for each such time.
std::vector<std::vector<Part>> by_rounds(const std::vector<Part>& parts) {
  std::map<std::pair<int, int>, std::vector<Part>> lists;
  for (Part part : parts) {
    std::vector<Part>& list = lists[{part.first, part.last}];
    if (!list.empty()) part.slot_row = list.back().slot_row + list.back().home_rows.length;
    list.push_back(part);
  }
  std::vector<std::vector<Part>> result;
  for (auto& [rounds, list] : lists) result.push_back(std::move(list));
  return result;
}

// Cuts the needed rows x heads into parcels, such that nothing is in two of them.
std::vector<Parcel> parcels_of(const std::vector<Need>& needs, int rounds) {
  std::vector<int64_t> cuts;
  for (const Need& need : needs) {
    cuts.push_back(need.heads.begin);
    cuts.push_back(need.heads.end());
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<Parcel> parcels;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    std::vector<Need> of_heads;
    for (const Need& need : needs) {
      if (need.heads.begin <= cuts[i] && cuts[i] < need.heads.end()) of_heads.push_back(need);
    }
    for (std::vector<Part>& parts : by_rounds(parts_of(of_heads, rounds))) {
      const auto same = std::ranges::find_if(parcels, [&](const Parcel& parcel) {
        return parcel.heads.end() == cuts[i] && parcel.parts == parts;
      });
      if (same != parcels.end()) {
        same->heads.length += cuts[i + 1] - cuts[i];
      } else {
        parcels.push_back({{cuts[i], cuts[i + 1] - cuts[i]}, std::move(parts)});
      }
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
      rounds_ = std::max(rounds_, task.round + 1);
      if (task.q_owner != rank_ && task.k_owner != rank_ && task.server != rank_) continue;
      if (cut_task(problem_, task, 0, 0).empty()) continue;
      const Need q{task.q_rows, task.q_heads, task.round};
      const Need k{task.k_rows, kv_heads_of(task.q_heads, problem_.heads), task.round};
      // Both ends know all tasks between them, in the same order.
      if (task.server == rank_) {
        tasks_.push_back(task);
        if (task.q_owner != rank_) here_[task.q_owner].queries.push_back(q);
        if (task.k_owner != rank_) here_[task.k_owner].keys.push_back(k);
      } else {
        if (task.q_owner == rank_) there_[task.server].queries.push_back(q);
        if (task.k_owner == rank_) there_[task.server].keys.push_back(k);
      }
    }
  }

  // While round r is computed, in step r + 1, rows of r + 1 arrive and results of r - 1 go back.
  Plan plan() {
    plan_.slots.push_back(home_slot(problem_, direction_, rank_));
    plan_.steps.resize(static_cast<size_t>(rounds_) + 2);
    plan_.steps[0].clears.push_back({0, home_outputs(direction_)});
    for (int peer = 0; peer < ranks_; ++peer) {
      send_and_take_back(peer);
      receive_and_give_back(peer);
    }
    // In each step first what goes to servers, then what comes back: on both ends of a pair.
    for (size_t s = 0; s < plan_.steps.size(); ++s) {
      plan_.steps[s].transfers.insert(plan_.steps[s].transfers.end(), back_[s].begin(),
                                      back_[s].end());
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
    LONGHAUL_CHECK(task.round >= 0, absl::StrCat("round ", task.round));
  }

  struct Needs {
    std::vector<Need> queries, keys;
  };

  void dispatch(bool send, End end, int round) {
    end.done_by = round + 1;
    Step& step = plan_.steps[static_cast<size_t>(round)];
    send ? add_send(step, end) : add_receive(step, end, Reduce::kStore);
  }
  void give_back(bool send, End end, int round, Reduce reduce) {
    end.done_by = round + 3;
    Step step;
    send ? add_send(step, end) : add_receive(step, end, reduce);
    back_[static_cast<size_t>(round) + 2].push_back(step.transfers.front());
  }

  void send_and_take_back(int server) {
    const auto needs = there_.find(server);
    if (needs == there_.end()) return;
    for (const Parcel& parcel : parcels_of(needs->second.queries, rounds_)) {
      for (const Part& part : parcel.parts) {
        const End end{server, 0, query_inputs(direction_), part.home_rows, parcel.heads};
        dispatch(true, end, part.first);
        const End results{server, 0, query_outputs(direction_), part.home_rows, parcel.heads};
        give_back(false, results, part.last, forward() ? Reduce::kMerge : Reduce::kAdd);
      }
    }
    for (const Parcel& parcel : parcels_of(needs->second.keys, rounds_)) {
      for (const Part& part : parcel.parts) {
        dispatch(true, {server, 0, kKeys, part.home_rows, parcel.heads}, part.first);
        if (forward()) continue;
        give_back(false, {server, 0, kKeyGradients, part.home_rows, parcel.heads}, part.last,
                  Reduce::kAdd);
      }
    }
  }

  void receive_and_give_back(int owner) {
    const auto needs = here_.find(owner);
    if (needs == here_.end()) return;
    Step& compute = plan_.steps[1];
    for (Parcel& parcel : parcels_of(needs->second.queries, rounds_)) {
      const int slot = static_cast<int>(plan_.slots.size());
      plan_.slots.push_back({.q_rows = parcel.rows(),
                             .k_rows = 0,
                             .q_heads = parcel.heads,
                             .kv_heads = {},
                             .fields = query_inputs(direction_) | query_outputs(direction_)});
      compute.clears.push_back({slot, query_outputs(direction_)});
      for (const Part& part : parcel.parts) {
        const Span rows{part.slot_row, part.home_rows.length};
        dispatch(false, {owner, slot, query_inputs(direction_), rows, parcel.heads}, part.first);
        give_back(true, {owner, slot, query_outputs(direction_), rows, parcel.heads}, part.last,
                  Reduce::kStore);
      }
      query_slots_[owner].push_back({std::move(parcel), slot});
    }
    for (Parcel& parcel : parcels_of(needs->second.keys, rounds_)) {
      const int slot = static_cast<int>(plan_.slots.size());
      plan_.slots.push_back({.q_rows = 0,
                             .k_rows = parcel.rows(),
                             .q_heads = {},
                             .kv_heads = parcel.heads,
                             .fields = key_fields(direction_)});
      if (!forward()) compute.clears.push_back({slot, kKeyGradients});
      for (const Part& part : parcel.parts) {
        const Span rows{part.slot_row, part.home_rows.length};
        dispatch(false, {owner, slot, kKeys, rows, parcel.heads}, part.first);
        if (forward()) continue;
        give_back(true, {owner, slot, kKeyGradients, rows, parcel.heads}, part.last,
                  Reduce::kStore);
      }
      key_slots_[owner].push_back({std::move(parcel), slot});
    }
  }

  // A task's rows and heads may lie in several slots, on either side: it is cut by both.
  void place_tasks() {
    struct Key {
      int step;
      int q_slot, k_slot;
      Span heads;
      auto order() const { return std::tuple(step, q_slot, k_slot, heads.begin, heads.length); }
      bool operator<(const Key& other) const { return order() < other.order(); }
    };
    std::map<Key, std::vector<Segment>> merged;
    for (const PlacedTask& task : tasks_) {
      for (Span q_heads : head_cuts(task)) {
        const Span kv_heads = kv_heads_of(q_heads, problem_.heads);
        for (const Place& q : places(query_slots_, task.q_owner, q_heads, task.q_rows)) {
          for (const Place& k : places(key_slots_, task.k_owner, kv_heads, task.k_rows)) {
            PlacedTask part = task;
            part.q_rows = q.home_rows;
            part.k_rows = k.home_rows;
            const std::vector<Segment> segments = cut_task(problem_, part, q.slot_row, k.slot_row);
            if (segments.empty()) continue;
            const int step = q.slot != 0 || k.slot != 0 ? task.round + 1 : 0;
            std::vector<Segment>& list = merged[{step, q.slot, k.slot, q_heads}];
            list.insert(list.end(), segments.begin(), segments.end());
          }
        }
      }
    }
    for (auto& [key, list] : merged) {
      if (key.step == 0) {
        place_own({key.q_slot, key.k_slot, key.heads, std::move(list)});
      } else {
        plan_.steps[static_cast<size_t>(key.step)].tasks.push_back(
            {key.q_slot, key.k_slot, key.heads, std::move(list)});
      }
    }
  }

  // What needs nothing of others is computed while rows travel: half of the heads while the first
  // parcels do, the rest while the last results return, since nobody waits for it.
  void place_own(Task task) {
    const auto moves = [](const Step& step) { return !step.transfers.empty(); };
    const int64_t unit = problem_.heads.kv_heads > 1 ? problem_.heads.group() : 1;
    const int64_t later = task.q_heads.length / unit / 2 * unit;
    if (later > 0 && std::ranges::any_of(plan_.steps, moves)) {
      Task rest = task;
      rest.q_heads = {task.q_heads.end() - later, later};
      task.q_heads.length -= later;
      plan_.steps.back().tasks.push_back(std::move(rest));
    }
    plan_.steps.front().tasks.push_back(std::move(task));
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

  // Where rows of an owner lie here that a task needs of these heads, all of one parcel.
  struct Place {
    Span home_rows;
    int slot = 0;
    int64_t slot_row = 0;
  };
  std::vector<Place> places(const std::map<int, std::vector<Side>>& slots, int owner, Span heads,
                            Span rows) const {
    if (owner == rank_) return {{rows, 0, rows.begin}};
    std::vector<Place> list;
    int64_t found = 0;
    for (const Side& s : slots.at(owner)) {
      if (s.parcel.heads.begin > heads.begin || heads.end() > s.parcel.heads.end()) continue;
      for (const Part& part : s.parcel.parts) {
        const int64_t begin = std::max(rows.begin, part.home_rows.begin);
        const int64_t end = std::min(rows.end(), part.home_rows.end());
        if (begin >= end) continue;
        list.push_back(
            {{begin, end - begin}, s.slot, part.slot_row + begin - part.home_rows.begin});
        found += end - begin;
      }
    }
    LONGHAUL_CHECK(found == rows.length, "a task's rows and heads are in parcels");
    return list;
  }

  bool forward() const { return direction_ == Direction::kForward; }

  const Problem& problem_;
  Direction direction_;
  int rank_;
  int ranks_;
  int rounds_ = 1;
  std::vector<PlacedTask> tasks_;      // those with work that this rank computes
  std::map<int, Needs> here_, there_;  // of other owners here, by owner; of home, by server
  std::map<int, std::vector<Side>> query_slots_, key_slots_;  // by owner
  Plan plan_;
  std::map<size_t, std::vector<Transfer>> back_;  // by step: results
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
