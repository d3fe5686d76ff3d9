// The gated delta rule as passes over rows, in chunks of 32. With the names of
// kernels/cpu/delta_tiles-inl.h, per chunk with the state S before it and the gradient G of the
// state after it, and D_ij the gates of rows j + 1 to i:
//
//   right  y(i) = v(i) - rising(i) S^T k(i) - sum over j < i of D_ij (k(i) . k(j)) u(j)
//          u = beta y         O(i) = rising(i) S^T q(i) + sum over j <= i of D_ij (q(i) . k(j))
//          u(j) S <- decay S + (falling K)^T U
//   left   r(j) = falling(j) G^T k(j) + sum over i >= j of D_ij (q(i) . k(j)) dO(i)
//                 - sum over i > j of D_ij (k(i) . k(j)) w(i)         w = beta r = dv
//          G <- decay G + (rising Q)^T dO - (rising K)^T W
//   keys   dq and dk, from S, G, u and w of all chunks at once
//
// Columns of values do not depend on each other, so that a block of a pass to the right or left has
// 32 of them of one head, and walks through a run; keys have a block for each chunk, head and 32
// key dimensions. Backward goes through a run piece by piece from the last, with the states before
// its pieces from a pass of their own, and keeps S, G, y and r of one piece's chunks.
#pragma once

#include "kernels/cuda/linear_attention_passes.h"
#include "kernels/delta_rule.h"

namespace longhaul::kernels::cuda {

inline constexpr int kDeltaRows = 32;             // of a chunk
inline constexpr int64_t kDeltaPieceRows = 1024;  // whose chunks backward keeps at once

// What backward keeps of the chunks of a piece of each run: slot n is chunk n % chunks of the piece
// of run n / chunks.
template <class A>
struct DeltaKept {
  A *states = nullptr, *gradients = nullptr;  // [N, H, D, Dv] before and after a chunk
  A *y = nullptr, *r = nullptr;               // [N, kDeltaRows, H, Dv]
  double* products = nullptr;                 // [N, H, tiles of Dv]: S . the G that leaves
  double* terms = nullptr;                    // [N, H, tiles of D, kDeltaRows]: of gate gradients
  int64_t chunks = 0;                         // of a run
};

template <class T>
struct DeltaPass {
  using A = Accumulator<T>;

  Operand<T> q{}, k{}, v{}, dout{};              // no q: no result; no v: zeros
  const A *log_gate = nullptr, *beta = nullptr;  // [T, H]
  int head_dim = 0, columns = 0;                 // columns: of the states
  int64_t step = 0;                              // of each run's pieces, this one
  bool identity = false;                         // enters a run, in place of a state
  // At the ends of runs, and between their pieces.
  LinearStates<const A> entering_run{}, entering{};
  LinearStates<A> leaving_run{}, leaving{};
  A *out = nullptr, *dq = nullptr, *dk = nullptr, *dv = nullptr;
  A *dlog_gate = nullptr, *dbeta = nullptr;
  DeltaKept<A> kept{};  // or none
};

template <class T>
struct DeltaPasses {
  static void right(const Context&, const LinearWork&, const DeltaPass<T>&);
  static void left(const Context&, const LinearWork&, const DeltaPass<T>&);
  // dq and dk, then dlog_gate and dbeta, of what is kept.
  static void keys(const Context&, const LinearWork&, const DeltaPass<T>&);
};

}  // namespace longhaul::kernels::cuda
