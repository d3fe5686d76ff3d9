// Types of the attention forward pass that do not depend on the instruction set.
#pragma once

#include <vector>

#include "kernels/cpu/attention_tiles.h"

namespace longhaul::kernels::cpu {

inline constexpr int64_t kKeys = 128;      // keys a step
inline constexpr int64_t kMostPanels = 8;  // of queries a task

// Query rows [begin, end) and the segments that have keys for them.
struct QueryBlock {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t work = 0;  // query-key pairs, about
  std::vector<const Segment*> segments;
};

// Blocks that see any key, the heaviest first.
std::vector<QueryBlock> query_blocks(const AttentionForward&, int threads);

template <class A>
struct ForwardScratch {
  ForwardScratch(A* memory, int64_t head_dim, int64_t value_dim, bool general) {
    const int64_t queries = kMostPanels * kPanel;
    Carver<A> carver(memory);
    q = carver.take(queries * head_dim);
    out = carver.take(queries * value_dim);
    max = carver.take(queries);
    sum = carver.take(queries);
    scores = carver.take(kPanel * kKeys);
    step_max = carver.take(kPanel);
    rescale = carver.take(kPanel);
    step_sum = carver.take(kPanel);
    k = carver.take((kKeys + 1) * head_dim);
    v = carver.take(kKeys * value_dim);
    dropout = general ? carver.take(kKeys * kPanel) : nullptr;
    elements = carver.taken();
  }
  static int64_t size(int64_t head_dim, int64_t value_dim, bool general) {
    return ForwardScratch(nullptr, head_dim, value_dim, general).elements;
  }

  A *q, *out;    // panels of Q^T (units along the rows of Q) and O^T
  A *max, *sum;  // per query: m in units of log 2, l
  A* scores;     // [kKeys][kPanel]: S, then units of P
  A* step_max;   // [kPanel]: the largest score of the step
  A* rescale;    // [kPanel]: 2^(m - m')
  A* step_sum;   // [kPanel]: l with the step's keys
  A *k, *v;      // units of this step's keys (along their rows) and values (across the rows)
  A* dropout;    // [kKeys][kPanel]: factors of P; the general instance's
  int64_t elements;
};

}  // namespace longhaul::kernels::cpu
