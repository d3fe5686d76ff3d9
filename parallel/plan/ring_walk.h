// What ring, usp and query_ring share: the rows of every rank of a ring visit every other rank
// once.
#pragma once

#include <vector>

#include "parallel/layout/token_layout.h"
#include "parallel/plan/plan.h"

namespace longhaul::parallel {

// At step s of the walk, the rows of the rank s places back lie on this rank: its own in own_slot,
// then others' in first_buffer and the next slot in turn, where one is computed on and sent on
// while the next arrives. Nothing is sent on behalf of ranks without rows.
struct RingWalk {
  struct Member {
    int rank = 0;
    int64_t rows = 0;
  };
  std::vector<Member> members;  // in the direction of travel
  int place = 0;                // of this rank among them
  int own_slot = 0;
  int first_buffer = 1;
  Span heads;       // held by own_slot and the buffers
  Fields visiting;  // what travels, one step ahead of its use
  // What follows one step behind, if anything: sums over all ranks for the visiting rows. A rank's
  // own part stays in own_slot; the first neighbour starts the sum that travels.
  Fields sums;
  bool origins = false;  // visiting rows are homes' keys (Transfer::origin)

  int size() const { return static_cast<int>(members.size()); }
  int buffers() const { return size() < 3 ? size() - 1 : 2; }
  // One more than there are ranks where sums come home.
  int steps() const { return size() + (!sums.empty() && size() > 1 ? 1 : 0); }
  int slot_at(int s) const { return s == 0 ? own_slot : first_buffer + (s - 1) % 2; }
  int place_at(int s) const { return (place + size() - s % size()) % size(); }
  const Member& visitor(int s) const { return members[static_cast<size_t>(place_at(s))]; }

  // Adds transfers, and clears of the buffers' sums, to steps first_step .. first_step + steps() -
  // 1 of the plan. own_slot's sums are cleared by the caller.
  void add_to(Plan& plan, int first_step) const;
};

// All ranks in their order.
RingWalk whole_ring(const TokenLayout& layout, int rank);

}  // namespace longhaul::parallel
