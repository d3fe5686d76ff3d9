// Cuts an attention matrix into segments (kernels/segment.h): rows of queries against rows of keys,
// for a mask and a packing of documents.
#pragma once

#include <vector>

#include "kernels/segment.h"
#include "parallel/layout/documents.h"
#include "parallel/layout/token_layout.h"

namespace longhaul::parallel {

struct Mask {
  bool causal = true;
  // A query sees its last `window` keys, itself included; 0: all. Without `causal` it also sees
  // every later key.
  int64_t window = 0;
  // Prefix language models: every query of a document also sees the document's first `prefix`
  // tokens, whatever `causal` and `window` say (Raffel et al. 2020, section 3.2.1). A query sees
  // key k iff both are of one document and
  //     k is among its first `prefix` tokens, or (causal -> k <= q) and (window > 0 -> k > q -
  //     window).
  int64_t prefix = 0;
  bool operator==(const Mask&) const = default;
};

// Global positions [begin, end) outside of which no query at a position of [first, last] sees a
// key: what cuts far apart are skipped by.
IndexRange keys_in_reach(int64_t first, int64_t last, const Documents& documents, const Mask& mask);

// Every pair (query row, key row) that the mask and the documents allow is in exactly one segment,
// and no other pair is in any. Segments without a pair are left out. q and k are lists of runs
// whose rows follow each other from q_row and k_row on; all runs of both lists have the same stride
// or length <= 1 (true within one layout). Segments are trimmed to the rows that see or are seen,
// and are in ascending order of their first query row. With a prefix a piece is up to three
// segments. Time: pieces (q run x k run x document) that overlap, plus a comparison for each pair
// of runs.
std::vector<Segment> cut_segments(const RunList& q, const RunList& k, const Documents& documents,
                                  const Mask& mask, int64_t q_row = 0, int64_t k_row = 0);

// The pairs of a segment's queries [q.begin, q.end) with its keys [k.begin, k.end), trimmed as
// those above; q_len = 0 if there are none.
Segment part_of(const Segment& segment, IndexRange q, IndexRange k);

}  // namespace longhaul::parallel
