#include "parallel/plan/scan.h"

#include <algorithm>
#include <array>
#include <functional>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/core/error.h"
#include "parallel/plan/parts.h"

namespace longhaul::parallel {

namespace {

constexpr Fields kStates{Field::kState};
constexpr Fields kMaps{Field::kState, Field::kDecay};
constexpr int kGathered = 2;  // slot of all_gather

// A run of the layout: one affine map.
struct Map {
  int rank;
  int64_t row;  // of its rank's home slot: the index of the run
  int64_t begin;
  int64_t length;
};

// In the order in which a state goes through them.
std::vector<Map> maps_in_order(const TokenLayout& layout, Direction direction) {
  std::vector<Map> maps;
  for (int r = 0; r < layout.ranks(); ++r) {
    for (size_t i = 0; i < layout.runs(r).size(); ++i) {
      const Run& run = layout.runs(r)[i];
      if (run.length > 1 && run.stride != 1) {
        fail(ErrorCode::kConfig, absl::StrCat("linear attention scans ranges of tokens, but rank ",
                                              r, " owns tokens of stride ", run.stride,
                                              "; use layout contiguous or zigzag"));
      }
      maps.push_back({r, static_cast<int64_t>(i), run.global_begin, run.length});
    }
  }
  std::sort(maps.begin(), maps.end(), [](const Map& a, const Map& b) {
    return std::tie(a.begin, a.length, a.rank, a.row) < std::tie(b.begin, b.length, b.rank, b.row);
  });
  if (direction == Direction::kBackward) std::reverse(maps.begin(), maps.end());
  return maps;
}

int64_t own_maps(const TokenLayout& layout, int rank) {
  return static_cast<int64_t>(layout.runs(rank).size());
}

Slot map_slot(int64_t rows, int64_t heads, Fields fields) {
  return {.q_rows = 0, .k_rows = rows, .q_heads = {}, .kv_heads = {0, heads}, .fields = fields};
}

// Rows of a slot of a rank.
struct Place {
  int rank;
  int slot;
  Span rows;
};

// What `rank` has of a transfer: either end, both (neighbours in the list) or none.
void move(Step& step, int rank, const Place& from, const Place& to, Fields fields, Span heads,
          Reduce reduce, int done_by) {
  if (from.rank == rank) {
    add_send(step, {to.rank, from.slot, fields, from.rows, heads, done_by});
  }
  if (to.rank == rank) {
    add_receive(step, {from.rank, to.slot, fields, to.rows, heads, done_by}, reduce);
  }
}

// A chain through all maps, in blocks of heads. Map g gets block b in tick g - 1 + b, composes its
// own map with it in place and hands it on in the next tick. All of a tick's messages are due
// together, so that ranks that send to each other in a tick (zigzag) do not wait for one another.
Plan plan_chain(const TokenLayout& layout, int64_t heads, int blocks, Direction direction,
                int rank) {
  const std::vector<Map> maps = maps_in_order(layout, direction);
  const auto count = static_cast<int>(maps.size());
  const int64_t own = own_maps(layout, rank);
  Plan plan;
  plan.slots = {map_slot(own, heads, kMaps), map_slot(own, heads, kStates)};
  if (own == 0) return plan;
  plan.steps.emplace_back();
  plan.steps[0].clears.push_back({kEnteringSlot, kStates});

  for (int tick = 0; tick < count - 1 + blocks - 1; ++tick) {
    Step travel, fold;
    const auto at = static_cast<int>(plan.steps.size());
    const int first = std::max(1, tick - blocks + 2), last = std::min(count - 1, tick + 1);
    for (int g = first; g <= last; ++g) {
      const Map &map = maps[static_cast<size_t>(g)], &before = maps[static_cast<size_t>(g - 1)];
      const Span block = even_part(heads, blocks, tick + 1 - g);
      const Place home{before.rank, kMapsSlot, {before.row, 1}};
      const Place entering{map.rank, kEnteringSlot, {map.row, 1}};
      move(travel, rank, home, entering, kStates, block, Reduce::kStore, at + 1);
      if (map.rank == rank) {
        move(fold, rank, entering, {rank, kMapsSlot, {map.row, 1}}, kStates, block,
             Reduce::kCompose, at + 2);
      }
    }
    if (travel.transfers.empty()) continue;
    plan.steps.push_back(std::move(travel));
    if (!fold.transfers.empty()) plan.steps.push_back(std::move(fold));
  }
  return plan;
}

Plan plan_ring(const TokenLayout& layout, int64_t heads, Direction direction, int rank) {
  return plan_chain(layout, heads, 1, direction, rank);
}

// As many blocks as maps: then a block has gone through half of its hops when the last one starts.
Plan plan_pipelined(const TokenLayout& layout, int64_t heads, Direction direction, int rank) {
  int64_t maps = 0;
  for (int r = 0; r < layout.ranks(); ++r) maps += own_maps(layout, r);
  const int64_t blocks = std::clamp<int64_t>(maps, 1, heads);
  return plan_chain(layout, heads, static_cast<int>(blocks), direction, rank);
}

Plan plan_all_gather(const TokenLayout& layout, int64_t heads, Direction direction, int rank) {
  const std::vector<Map> maps = maps_in_order(layout, direction);
  const int64_t own = own_maps(layout, rank);
  const Span all_heads{0, heads};
  std::vector<int64_t> first_row;  // of each rank's maps in the slot of all others'
  int64_t others = 0;
  for (int r = 0; r < layout.ranks(); ++r) {
    first_row.push_back(others);
    if (r != rank) others += own_maps(layout, r);
  }
  Plan plan;
  plan.slots = {map_slot(own, heads, kMaps), map_slot(own, heads, kStates),
                map_slot(others, heads, kMaps)};

  Step gather;
  gather.clears.push_back({kEnteringSlot, kStates});
  for (int r = 0; r < layout.ranks(); ++r) {
    const int64_t rows = own_maps(layout, r);
    if (r == rank || rows == 0 || own == 0) continue;
    add_send(gather, {r, kMapsSlot, kMaps, {0, own}, all_heads, 1});
    const Span to{first_row[static_cast<size_t>(r)], rows};
    add_receive(gather, {r, kGathered, kMaps, to, all_heads, 1}, Reduce::kStore);
  }
  plan.steps.push_back(std::move(gather));

  // A state goes through all maps up to the last own one: each becomes what leaves it.
  const auto place = [&](const Map& map) -> Place {
    const int64_t row =
        map.rank == rank ? map.row : first_row[static_cast<size_t>(map.rank)] + map.row;
    return {rank, map.rank == rank ? kMapsSlot : kGathered, {row, 1}};
  };
  size_t last_own = 0;
  for (size_t g = 0; g < maps.size(); ++g) {
    if (maps[g].rank == rank) last_own = g;
  }
  for (size_t g = 1; g <= last_own; ++g) {
    Step walk;
    const int done_by = static_cast<int>(plan.steps.size()) + 1;
    const Place before = place(maps[g - 1]);
    if (maps[g].rank == rank) {
      move(walk, rank, before, {rank, kEnteringSlot, {maps[g].row, 1}}, kStates, all_heads,
           Reduce::kStore, done_by);
    }
    move(walk, rank, before, place(maps[g]), kStates, all_heads, Reduce::kCompose, done_by);
    plan.steps.push_back(std::move(walk));
  }
  return plan;
}

// What enters map g is at first the map before it, then that of twice as many in each round. Where
// these are all there are, it is a state, and its decay does not matter.
Plan plan_doubling(const TokenLayout& layout, int64_t heads, Direction direction, int rank) {
  const std::vector<Map> maps = maps_in_order(layout, direction);
  const auto count = static_cast<int64_t>(maps.size());
  const int64_t own = own_maps(layout, rank);
  const Span all_heads{0, heads};
  Plan plan;
  plan.slots = {map_slot(own, heads, kMaps), map_slot(own, heads, kMaps)};
  const auto place = [&](int64_t g, int slot) -> Place {
    const Map& map = maps[static_cast<size_t>(g)];
    return {map.rank, slot, {map.row, 1}};
  };
  // What entering g is made of, once it has reached over `reach` maps.
  const auto fields = [](int64_t g, int64_t reach) { return reach >= g ? kStates : kMaps; };

  Step shift;
  shift.clears.push_back({kEnteringSlot, kStates});
  for (int64_t g = count - 1; g > 0; --g) {
    move(shift, rank, place(g - 1, kMapsSlot), place(g, kEnteringSlot), fields(g, 1), all_heads,
         Reduce::kStore, 1);
  }
  plan.steps.push_back(std::move(shift));
  for (int64_t reach = 1; reach + 1 < count; reach *= 2) {
    Step round;
    const int done_by = static_cast<int>(plan.steps.size()) + 1;
    // The later ones first: they want the earlier ones as they were before this round.
    for (int64_t g = count - 1; g > reach; --g) {
      move(round, rank, place(g - reach, kEnteringSlot), place(g, kEnteringSlot),
           fields(g - reach, reach), all_heads, Reduce::kCompose, done_by);
    }
    plan.steps.push_back(std::move(round));
  }
  Step leave;
  const int done_by = static_cast<int>(plan.steps.size()) + 1;
  for (int64_t g = 1; g < count; ++g) {
    if (place(g, kMapsSlot).rank != rank) continue;
    move(leave, rank, place(g, kEnteringSlot), place(g, kMapsSlot), kStates, all_heads,
         Reduce::kCompose, done_by);
  }
  plan.steps.push_back(std::move(leave));
  return plan;
}

constexpr std::array kMethods{
    ScanMethod{"all_gather", "LASP-2 (Sun et al. 2025)", plan_all_gather},
    ScanMethod{"ring", "LASP-1 (Sun et al. 2024)", plan_ring},
    ScanMethod{"doubling", "Hillis and Steele 1986", plan_doubling},
    ScanMethod{"pipelined", "ZeCO (Chou et al. 2025)", plan_pipelined},
};

}  // namespace

std::span<const ScanMethod> scan_methods() { return kMethods; }

const ScanMethod& scan_method(std::string_view name) {
  std::vector<std::string> known;
  for (const ScanMethod& candidate : kMethods) {
    if (candidate.name == name) return candidate;
    known.emplace_back(candidate.name);
  }
  fail(ErrorCode::kConfig,
       absl::StrCat("unknown method \"", std::string(name),
                    "\" of linear attention; choose one of ", absl::StrJoin(known, ", ")));
}

}  // namespace longhaul::parallel
