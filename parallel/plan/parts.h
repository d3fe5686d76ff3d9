// What the planners share: names for common field sets and short ways to write a transfer.
#pragma once

#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "parallel/plan/strategy.h"

namespace longhaul::parallel {

inline constexpr Fields kKeys{Field::kK, Field::kV};
inline constexpr Fields kKeyGradients{Field::kDK, Field::kDV};
inline constexpr Fields kResults{Field::kOut, Field::kLse};
// What attention reads of a query row.
inline Fields query_inputs(Direction direction) {
  return direction == Direction::kForward
             ? Fields{Field::kQ}
             : Fields{Field::kQ, Field::kLse, Field::kDOut, Field::kDelta};
}
// What attention adds to on the query side.
inline Fields query_outputs(Direction direction) {
  return direction == Direction::kForward ? kResults : Fields{Field::kDQ};
}
// What is ever stored on the key side.
inline Fields key_fields(Direction direction) {
  return direction == Direction::kForward ? kKeys : kKeys | kKeyGradients;
}
// Everything the plan itself clears at home.
inline Fields home_outputs(Direction direction) {
  return direction == Direction::kForward ? kResults : Fields{Field::kDQ} | kKeyGradients;
}

// A rank's own rows, all heads.
Slot home_slot(const Problem& problem, Direction direction, int rank);
// A buffer for keys (and their gradients) of any rank.
Slot key_buffer(const Problem& problem, Direction direction);

// One end of a transfer. `step` lists it; done_by is a step index or the number of steps.
struct End {
  int peer = 0;
  int slot = 0;
  Fields fields;
  Span rows;
  Span heads;
  int done_by = 0;
  int origin = -1;
};
void add_send(Step& step, const End& end);
void add_receive(Step& step, const End& end, Reduce reduce);

// Attention of query rows against key rows that fill the task's slots from row 0 on; nothing if the
// mask leaves no pair. The task comes without segments.
void add_task(Step& step, const Problem& problem, Task task, const RunList& q, const RunList& k);
// Attention of home's queries against rows of `key_owner` that fill key_slot from row 0 on, over
// all heads; nothing if the mask leaves no pair.
void add_ring_task(Step& step, const Problem& problem, int rank, int key_owner, int key_slot);

// Spans in ascending order, those that touch joined; then the closest ones, gaps included, until
// there are at most `most`.
std::vector<Span> joined(std::vector<Span> spans, size_t most = std::numeric_limits<size_t>::max());

// Part `index` of [0, total), as evenly as possible: the first total % parts have one more.
Span even_part(int64_t total, int parts, int index);
// The kv heads that a range of query heads uses.
Span kv_heads_of(Span q_heads, const HeadShape& heads);

// All other ranks, if this rank has rows: the readers of a strategy that shows every rank all keys.
std::vector<int> all_other_readers(const Problem& problem, int rank);

}  // namespace longhaul::parallel
