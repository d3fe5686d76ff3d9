// Types of the attention backward pass that do not depend on the instruction set.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cpu/attention_tiles.h"

namespace longhaul::kernels::cpu {

inline constexpr int64_t kQueryRows = 96;  // queries a step

// Keys of a step, so that its operands stay in a core's second-level cache.
constexpr int64_t step_keys(int64_t head_dim, int64_t value_dim) {
  return std::clamp(16384 / std::max(head_dim, value_dim) / kPanel * kPanel, kPanel, 4 * kPanel);
}

// A part of the attention matrix: query rows [q_begin, q_end) x key rows [k_begin, k_end) of the
// tensors, with the segments that lie in it.
struct GridTile {
  int64_t round = 0;
  int64_t q_begin = 0, q_end = 0;
  int64_t k_begin = 0, k_end = 0;
  int64_t work = 0;  // query-key pairs, about
  std::vector<const Segment*> segments;
};

// All tiles with anything to do: by rounds, the heaviest first within each. No two tiles of a round
// share query or key rows.
std::vector<GridTile> grid_tiles(const AttentionBackward&, int threads);

template <class A>
struct BackwardScratch {
  BackwardScratch(A* memory, int64_t head_dim, int64_t value_dim) {
    const int64_t keys = step_keys(head_dim, value_dim);
    Carver<A> carver(memory);
    k_panels = carver.take(keys * head_dim);
    v_panels = carver.take(keys * value_dim);
    dk_panels = carver.take(keys * head_dim);
    dv_panels = carver.take(keys * value_dim);
    k = carver.take(keys * rounded_up(head_dim, kDqUnit));
    q = carver.take(kQueryRows * head_dim);
    dout = carver.take(kQueryRows * value_dim);
    dq = carver.take(kQueryRows * rounded_up(head_dim, kDqUnit));
    p = carver.take(kQueryRows * keys);
    ds = carver.take(kQueryRows * keys);
    lse = carver.take(kQueryRows);
    delta = carver.take(kQueryRows);
    elements = carver.taken();
  }
  static int64_t size(int64_t head_dim, int64_t value_dim) {
    return BackwardScratch(nullptr, head_dim, value_dim).elements;
  }

  static constexpr int64_t kDqUnit = 16;  // a multiple of every vector's length

  A *k_panels, *v_panels;    // K^T and V^T in panels of keys
  A *dk_panels, *dv_panels;  // dK^T and dV^T likewise
  A* k;                      // K in rows, filled up to a multiple of kDqUnit
  A *q, *dout;               // rows of this step's queries
  A* dq;
  A *p, *ds;       // [kQueryRows][step_keys]
  A *lse, *delta;  // of this step's queries; lse in units of log 2
  int64_t elements;
};

}  // namespace longhaul::kernels::cpu
