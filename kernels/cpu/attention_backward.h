// Types of the attention backward pass that do not depend on the instruction set.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/cpu/attention_tiles.h"

namespace longhaul::kernels::cpu {

inline constexpr int64_t kQueryRows = 96;  // queries a step: whole tiles, and even

// Keys of a step, so that its operands stay in a core's second-level cache.
constexpr int64_t step_keys(int64_t head_dim, int64_t value_dim) {
  return std::clamp(32768 / std::max(head_dim, value_dim) / kPanel * kPanel, kPanel, 8 * kPanel);
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

// `depth` is that of the arithmetic: elements of a sum in a unit of its operands (tile-inl.h).
// `general`: for the instance with soft-cap, bias and dropout.
template <class A>
struct BackwardScratch {
  BackwardScratch(A* memory, int64_t head_dim, int64_t value_dim, int64_t depth, bool general) {
    const int64_t keys = step_keys(head_dim, value_dim);
    const int64_t qk = head_dim / depth, ov = value_dim / depth, rows = kQueryRows / depth;
    Carver<A> carver(memory);
    k_panels = carver.take(keys * qk);
    v_panels = carver.take(keys * ov);
    dk_panels = carver.take(keys * head_dim);
    dv_panels = carver.take(keys * value_dim);
    // A tile may read, and not use, what stands behind the last row.
    k = carver.take(keys / depth * head_dim + kPanel);
    q = carver.take(kQueryRows * qk);
    dout = carver.take(kQueryRows * ov);
    p = carver.take(kQueryRows * kPanel);
    ds = carver.take(kQueryRows * keys / depth);
    dq = carver.take(kQueryRows * rounded_up(head_dim, kPanel));
    lse = carver.take(kQueryRows);
    delta = carver.take(kQueryRows);
    const bool single = depth == 1;
    q_across = single ? q : carver.take(rows * head_dim);
    dout_across = single ? dout : carver.take(rows * value_dim);
    p_across = single && !general ? p : carver.take(rows * kPanel);
    ds_across = single ? nullptr : carver.take(rows * kPanel);
    if (general) {
      dropout = carver.take(rounded_up(kQueryRows, kPanel) * kPanel);
      by_keys = carver.take(kPanel * kPanel);
      steepness = carver.take(kQueryRows * kPanel);
    }
    elements = carver.taken();
  }
  static int64_t size(int64_t head_dim, int64_t value_dim, int64_t depth, bool general) {
    return BackwardScratch(nullptr, head_dim, value_dim, depth, general).elements;
  }

  A *k_panels, *v_panels;    // K^T and V^T: units along their rows, panels of keys
  A *dk_panels, *dv_panels;  // sums of dK^T / scale and dV^T, panels of keys
  A* k;                      // units of K across its rows
  A *q, *dout;               // this step's queries: units along their rows
  A* p;                      // [kQueryRows][kPanel]
  A* ds;                     // dS / scale: units along its rows; a panel of keys after the other
  A* dq;                     // of this step's queries and keys, / scale
  A *lse, *delta;            // of this step's queries; lse in units of log 2
  // Units across the rows, for sums over queries. Units of single elements are what stands above.
  A *q_across, *dout_across;
  A *p_across, *ds_across;  // of one panel; ds_across null: that part of ds
  // The general instance's, of one panel. Its p_across holds P after dropout, and is not p.
  A* dropout = nullptr;    // [kQueryRows][kPanel]: factors of P and dP
  A* by_keys = nullptr;    // [kPanel][kPanel]: the same as they are made, a row per key
  A* steepness = nullptr;  // [kQueryRows][kPanel]: derivative of the soft-cap
  int64_t elements;
};

}  // namespace longhaul::kernels::cpu
