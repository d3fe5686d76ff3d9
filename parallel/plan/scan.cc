#include <algorithm>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "kernels/core/error.h"
#include "parallel/plan/parts.h"
#include "parallel/plan/planners.h"

namespace longhaul::parallel {

namespace {

constexpr Fields kStates{Field::kState};
constexpr Span kOneHead{0, 1};
constexpr int kHome = 0, kEntering = 1, kWork = 2;  // slots

// A run of the layout: one affine map.
struct Map {
  int rank;
  int64_t row;  // of its rank's home slot: the index of the run
  int64_t begin;
  int64_t length;
};

std::vector<Map> maps_in_order(const TokenLayout& layout) {
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
  return maps;
}

int64_t own_maps(const TokenLayout& layout, int rank) {
  return static_cast<int64_t>(layout.runs(rank).size());
}

Slot state_slot(int64_t rows) {
  return {.q_rows = 0, .k_rows = rows, .q_heads = {}, .kv_heads = kOneHead, .fields = kStates};
}

End state(int peer, int slot, Span rows, int done_by) {
  return {peer, slot, kStates, rows, kOneHead, done_by};
}

// Both ends of a transfer from a rank to itself.
void add_local(Step& step, int rank, int from_slot, Span from, int to_slot, Span to, Reduce reduce,
               int done_by) {
  add_send(step, state(rank, from_slot, from, done_by));
  add_receive(step, state(rank, to_slot, to, done_by), reduce);
}

}  // namespace

Plan plan_scan_ring(const TokenLayout& layout, int rank) {
  const std::vector<Map> maps = maps_in_order(layout);
  const int64_t own = own_maps(layout, rank);
  Plan plan;
  plan.slots = {state_slot(own), state_slot(own), state_slot(own)};
  if (own == 0) return plan;

  // Slot kWork, row i: this rank's map i, after what precedes it.
  plan.steps.emplace_back();
  plan.steps[0].clears.push_back({kEntering, kStates});
  add_local(plan.steps[0], rank, kHome, {0, own}, kWork, {0, own}, Reduce::kStore, 1);
  plan.steps.emplace_back();
  // Each block appends to the last step, whose transfers are done by the step it then adds.
  const auto done_by = [&plan] { return static_cast<int>(plan.steps.size()); };
  for (size_t g = 0; g < maps.size(); ++g) {
    const Map& map = maps[g];
    if (map.rank != rank) continue;
    const Span row{map.row, 1};
    if (g > 0 && maps[g - 1].rank != rank) {
      add_receive(plan.steps.back(), state(maps[g - 1].rank, kEntering, row, done_by()),
                  Reduce::kStore);
      plan.steps.emplace_back();
    }
    if (g + 1 == maps.size()) continue;
    if (g > 0) {
      add_local(plan.steps.back(), rank, kEntering, row, kWork, row, Reduce::kCompose, done_by());
      plan.steps.emplace_back();
    }
    const Map& after = maps[g + 1];
    if (after.rank == rank) {
      add_local(plan.steps.back(), rank, kWork, row, kEntering, {after.row, 1}, Reduce::kStore,
                done_by());
      plan.steps.emplace_back();
    } else {
      add_send(plan.steps.back(), state(after.rank, kWork, row, done_by()));
    }
  }
  return plan;
}

Plan plan_scan_all_gather(const TokenLayout& layout, int rank) {
  const std::vector<Map> maps = maps_in_order(layout);
  const int64_t own = own_maps(layout, rank);
  std::vector<int64_t> first_row;  // of each rank's maps in the slot of all maps
  int64_t all = 0;
  for (int r = 0; r < layout.ranks(); ++r) {
    first_row.push_back(all);
    if (r != rank) all += own_maps(layout, r);
  }
  Plan plan;
  plan.slots = {state_slot(own), state_slot(own), state_slot(all)};

  Step gather;
  gather.clears.push_back({kEntering, kStates});
  for (int r = 0; r < layout.ranks(); ++r) {
    if (r == rank) continue;
    if (own > 0) add_send(gather, state(r, kHome, {0, own}, 1));
    if (const int64_t rows = own_maps(layout, r); rows > 0) {
      add_receive(gather, state(r, kWork, {first_row[static_cast<size_t>(r)], rows}, 1),
                  Reduce::kStore);
    }
  }
  plan.steps.push_back(std::move(gather));

  // One step for each own map: what enters it is composed from the last map before it backwards, to
  // the own map before (which is in the previous step's result) or to the first one.
  const Map* own_before = nullptr;
  size_t from = 0;
  for (size_t g = 0; g < maps.size(); ++g) {
    if (maps[g].rank != rank) continue;
    Step combine;
    const Span to{maps[g].row, 1};
    const int done_by = static_cast<int>(plan.steps.size()) + 1;
    for (size_t before = g; before-- > from;) {
      const Map& map = maps[before];
      const Span row{first_row[static_cast<size_t>(map.rank)] + map.row, 1};
      add_local(combine, rank, kWork, row, kEntering, to, Reduce::kCompose, done_by);
    }
    if (own_before) {
      const Span row{own_before->row, 1};
      add_local(combine, rank, kHome, row, kEntering, to, Reduce::kCompose, done_by);
      add_local(combine, rank, kEntering, row, kEntering, to, Reduce::kCompose, done_by);
    }
    plan.steps.push_back(std::move(combine));
    own_before = &maps[g];
    from = g + 1;
  }
  return plan;
}

}  // namespace longhaul::parallel
