#include "parallel/plan/decayed_scan.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <utility>

#include "kernels/core/error.h"
#include "parallel/plan/parts.h"

namespace longhaul::parallel {

namespace {

constexpr Fields kStates{Field::kState};

struct Map {
  int rank;
  int64_t row;
  int64_t begin, length;
};

std::vector<Map> maps_of(const TokenLayout& layout) {
  std::vector<Map> maps;
  for (int r = 0; r < layout.ranks(); ++r) {
    for (size_t i = 0; i < layout.runs(r).size(); ++i) {
      const Run& run = layout.runs(r)[i];
      maps.push_back({r, static_cast<int64_t>(i), run.global_begin, run.length});
    }
  }
  std::ranges::sort(maps, {}, [](const Map& map) {
    return std::tuple(map.begin, map.length, map.rank, map.row);
  });
  return maps;
}

// Tokens that any state passes through on its way to a run beyond the next; none: there is no such
// run.
std::optional<int64_t> shortest_way(const TokenLayout& layout) {
  const std::vector<Map> maps = maps_of(layout);
  std::optional<int64_t> shortest;
  for (size_t g = 1; g + 1 < maps.size(); ++g) {
    shortest = std::min(shortest.value_or(maps[g].length), maps[g].length);
  }
  return shortest;
}

bool forgets_over(double slope, int64_t tokens, double bound) {
  return std::exp(-slope * static_cast<double>(tokens)) < bound;
}

// Ranges of heads, in order.
std::vector<Span> ranges(const std::vector<bool>& heads, bool wanted) {
  std::vector<Span> spans;
  for (size_t h = 0; h < heads.size(); ++h) {
    if (heads[h] != wanted) continue;
    const auto head = static_cast<int64_t>(h);
    if (!spans.empty() && spans.back().end() == head) {
      ++spans.back().length;
    } else {
      spans.push_back({head, 1});
    }
  }
  return spans;
}

// A plan for some heads, numbered from 0, becomes one for these heads among all.
class Renumbered {
 public:
  Renumbered(std::vector<Span> heads, int64_t all, int rank)
      : heads_(std::move(heads)), all_(all), rank_(rank) {}

  Plan operator()(Plan plan) const {
    for (size_t slot = 0; slot < plan.slots.size(); ++slot) {
      const bool known = slot == kMapsSlot || slot == kEnteringSlot;
      plan.slots[slot].kv_heads =
          known ? Span{0, all_}
                : Span{heads_.front().begin, heads_.back().end() - heads_.front().begin};
    }
    for (Step& step : plan.steps) step.transfers = transfers(step.transfers);
    return plan;
  }

 private:
  // Rows of some heads do not lie together in their slots, those of a single one do: parts of one
  // row need no memory to be packed in, so that no plan needs more than that of all heads.
  std::vector<Transfer> transfers(const std::vector<Transfer>& whole) const {
    std::vector<Transfer> parts;
    for (size_t i = 0; i < whole.size(); ++i) {
      // What a rank sends to itself it receives directly after, part by part.
      const bool pair = whole[i].peer == rank_ && whole[i].send;
      const std::vector<Transfer> first = split(whole[i]);
      const std::vector<Transfer> second = pair ? split(whole[i + 1]) : std::vector<Transfer>();
      for (size_t p = 0; p < first.size(); ++p) {
        parts.push_back(first[p]);
        if (pair) parts.push_back(second[p]);
      }
      if (pair) ++i;
    }
    return parts;
  }

  std::vector<Transfer> split(const Transfer& whole) const {
    std::vector<Transfer> parts;
    for (int64_t row = whole.rows.begin; row < whole.rows.end(); ++row) {
      int64_t before = 0;  // heads of earlier ranges
      for (const Span& range : heads_) {
        const int64_t begin = std::max(whole.heads.begin, before);
        const int64_t end = std::min(whole.heads.end(), before + range.length);
        if (begin < end) {
          Transfer part = whole;
          part.rows = {row, 1};
          part.heads = {range.begin + begin - before, end - begin};
          parts.push_back(part);
        }
        before += range.length;
      }
    }
    return parts;
  }

  std::vector<Span> heads_;
  int64_t all_;
  int rank_;
};

Plan without_heads(int64_t own, int64_t heads) {
  const Slot slot{.k_rows = own,
                  .q_heads = {},
                  .kv_heads = {0, heads},
                  .fields = Fields{Field::kState, Field::kDecay}};
  Plan plan;
  plan.slots = {slot, slot};
  plan.slots[kEnteringSlot].fields = kStates;
  if (own == 0) return plan;
  plan.steps.emplace_back();
  plan.steps[0].clears.push_back({kEnteringSlot, kStates});
  return plan;
}

// Every run's own sums go to the run after it before anything else, and leave that one composed
// with its own after everything else.
void add_neighbours(Plan& plan, const std::vector<Map>& maps, const std::vector<Span>& heads,
                    int rank) {
  if (plan.steps.empty()) return;  // no runs here
  Step first, leave;
  const int done_by = static_cast<int>(plan.steps.size()) + 1;
  for (size_t g = 1; g < maps.size(); ++g) {
    const Map &from = maps[g - 1], &to = maps[g];
    for (const Span& range : heads) {
      const Span there{from.row, 1}, here{to.row, 1};
      if (from.rank == rank) {
        add_send(first, {to.rank, kMapsSlot, kStates, there, range, 1});
      }
      if (to.rank != rank) continue;
      add_receive(first, {from.rank, kEnteringSlot, kStates, here, range, 1}, Reduce::kStore);
      add_send(leave, {rank, kEnteringSlot, kStates, here, range, done_by});
      add_receive(leave, {rank, kMapsSlot, kStates, here, range, done_by}, Reduce::kCompose);
    }
  }
  std::vector<Transfer>& begun = plan.steps[0].transfers;
  begun.insert(begun.begin(), first.transfers.begin(), first.transfers.end());
  if (!leave.transfers.empty()) plan.steps.push_back(std::move(leave));
}

}  // namespace

std::vector<bool> forgetting_heads(const TokenLayout& runs, std::span<const double> slopes,
                                   double bound) {
  const std::optional<int64_t> way = shortest_way(runs);
  std::vector<bool> forgets(slopes.size(), false);
  for (size_t h = 0; way && h < slopes.size(); ++h) {
    forgets[h] = forgets_over(slopes[h], *way, bound);
  }
  return forgets;
}

DecayError decay_error(const TokenLayout& runs, std::span<const double> slopes, double bound) {
  DecayError error;
  const std::optional<int64_t> way = shortest_way(runs);
  for (const double slope : slopes) {
    if (!way || !forgets_over(slope, *way, bound)) continue;
    ++error.heads;
    const double kept = std::exp(-slope * static_cast<double>(*way));
    error.of_state = std::max(error.of_state, kept);
    error.of_output = std::max(error.of_output, kept * std::exp(-slope) / -std::expm1(-slope));
  }
  return error;
}

Plan plan_scan(const ScanMethod& method, const TokenLayout& layout, int64_t heads,
               const std::vector<bool>& forgets, Direction direction, int rank) {
  const std::vector<Span> forgetting = ranges(forgets, true);
  if (forgetting.empty()) return method.plan(layout, heads, direction, rank);
  LONGHAUL_CHECK(static_cast<int64_t>(forgets.size()) == heads);
  const std::vector<Span> others = ranges(forgets, false);
  Plan plan = without_heads(static_cast<int64_t>(layout.runs(rank).size()), heads);
  if (!others.empty()) {
    int64_t count = 0;
    for (const Span& range : others) count += range.length;
    plan = Renumbered(others, heads, rank)(method.plan(layout, count, direction, rank));
  }
  std::vector<Map> maps = maps_of(layout);
  if (direction == Direction::kBackward) std::ranges::reverse(maps);
  add_neighbours(plan, maps, forgetting, rank);
  return plan;
}

}  // namespace longhaul::parallel
