// The attention of a sample as work that can be cut anywhere: by queries, keys and heads.
#pragma once

#include <cstdint>
#include <vector>

#include "parallel/plan/planners.h"

namespace longhaul::parallel {

// All tokens of one residue (modulo the layout's stride) in ascending order, whoever owns them: one
// list of keys for layouts without stripes, else one for each stripe.
struct KeyList {
  Run run;
  struct Part {  // consecutive rows of the list that are consecutive rows of one rank
    int64_t row = 0;
    int64_t length = 0;
    int owner = 0;
    int64_t home_row = 0;
  };
  std::vector<Part> parts;  // ascending, without gaps

  // The part that holds a row.
  size_t at(int64_t row) const;
};
std::vector<KeyList> key_lists(const TokenLayout& layout);

// A band of queries of one rank against keys of one list.
struct WorkPiece {
  int q_owner = 0;
  int keys = 0;  // index of the key list
  Segment band;  // q_row: of the owner; k_row: of the list
  Span heads;    // query heads
};

// The whole mask, cut where it must be: every pair is in exactly one piece, and no two pieces'
// rectangles overlap. In order of the queries' owners and rows.
std::vector<WorkPiece> all_work(const Problem& problem, const std::vector<KeyList>& keys);

// The tasks of a piece, one for each owner of its keys.
void append_tasks(const WorkPiece& piece, const KeyList& keys, int server,
                  std::vector<PlacedTask>& tasks);

}  // namespace longhaul::parallel
