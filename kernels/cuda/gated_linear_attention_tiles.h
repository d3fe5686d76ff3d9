// What the kernels of gated linear attention share: tiles of a chunk's rows in shared memory, and
// which rows belong together.
#pragma once

#include <cmath>

#include "kernels/cuda/gate_sum.h"
#include "kernels/cuda/gated_linear_attention_passes.h"
#include "kernels/cuda/hardware.h"
#include "kernels/cuda/linear_attention_place.h"
#include "kernels/cuda/simt_tiles.h"

namespace longhaul::kernels::cuda {

// A chunk's rows, 32 columns of them.
template <class A>
using GatedTile = A[kGatedRows][kSide + 1];
template <class A>
using GatedSquare = A[kGatedRows][kGatedRows + 1];
// 32 columns of a state.
template <class A>
using GatedState = A (*)[kSide + 1];

// A warp has rows warp() and last_row() of a chunk, which see 17 rows together.
inline constexpr int kPairs = kGatedRows + 1;
static_assert(kGatedRows == 2 * kWarps);
__device__ __forceinline__ int row_of_warp(int n) {
  return n == 0 ? warp() : kGatedRows - 1 - warp();
}

// Of a multiprocessor at least, by registers.
template <class T>
constexpr int kGatedBlocksAtOnce = sizeof(T) == 8 ? 1 : 2;

// Rows of a chunk: of the document that enters it, and of the one that leaves it.
template <bool kRight>
__device__ __forceinline__ IndexRange reached_rows(const LinearChunk& chunk) {
  return kRight ? IndexRange{0, chunk.first} : IndexRange{chunk.last, chunk.rows};
}
template <bool kRight>
__device__ __forceinline__ IndexRange leaving_rows(const LinearChunk& chunk) {
  return kRight ? IndexRange{chunk.last, chunk.rows} : IndexRange{0, chunk.first};
}
// Rows of row i's document in the chunk.
__device__ __forceinline__ IndexRange document_of(const LinearChunk& chunk, int i) {
  int begin = i, end = i + 1;
  while (begin > 0 && (chunk.starts >> begin & 1u) == 0) --begin;
  while (end < chunk.rows && (chunk.starts >> end & 1u) == 0) ++end;
  return {begin, end};
}

// Columns [begin, begin + 32) of a chunk's rows; zeros outside.
template <class T, class A>
__device__ void load_chunk(const Operand<T>& from, const LinearChunk& chunk, int64_t head,
                           int begin, GatedTile<A>& tile) {
  const HeadRows<T> rows = from.of_head(head);
  const int column = begin + lane();
  for (int r = warp(); r < kGatedRows; r += kWarps) {
    tile[r][lane()] = r < chunk.rows && column < from.dim
                          ? static_cast<A>(rows.row(chunk.begin + r)[column])
                          : A(0);
  }
}

template <class A>
struct GateTiles {
  GatedTile<A> log, gate;
  A decay[kSide], rest[kSide];  // over the chunk, rounded, and what rounding took away

  __device__ void load(const A* log_gate, const LinearChunk& chunk, int64_t heads, int64_t head,
                       int head_dim, int begin) {
    const int column = begin + lane();
    for (int r = warp(); r < kGatedRows; r += kWarps) {
      const int64_t at = ((chunk.begin + r) * heads + head) * head_dim + column;
      const A value = r < chunk.rows && column < head_dim ? log_gate[at] : A(0);
      log[r][lane()] = value;
      gate[r][lane()] = exp(value);
    }
  }
  // By one warp.
  __device__ void sum(const LinearChunk& chunk) {
    GateSum all;
    for (int r = 0; r < chunk.rows; ++r) all.add(static_cast<double>(log[r][lane()]));
    all.decay(decay[lane()], rest[lane()]);
  }
  // By one warp: F or T times rows of x, or alone.
  template <bool kFromFront>
  __device__ void multiply(const LinearChunk& chunk, const GatedTile<A>* x, GatedTile<A>& to) {
    A product = 1;
    for (int n = 0; n < chunk.rows; ++n) {
      const int r = kFromFront ? n : static_cast<int>(chunk.rows) - 1 - n;
      const A passed = product * gate[r][lane()];
      const A value = kFromFront ? passed : product;
      to[r][lane()] = x != nullptr ? value * (*x)[r][lane()] : value;
      product = passed;
    }
  }
};

// e^(the gates of the run's pieces between its end and this piece).
template <class A, bool kRight>
__device__ A decay_of_pieces(const LinearWork& work, const LinearPlace& at, const double* sums,
                             int head_dim, int column) {
  const int64_t run = at.piece.run;
  const int64_t begin = kRight ? work.run_begins[run] : at.number + 1;
  const int64_t end = kRight ? at.number : work.run_begins[run + 1];
  double sum = 0;
  for (int64_t n = begin; n < end; ++n) sum += sums[(n * work.heads + at.head) * head_dim + column];
  return static_cast<A>(exp(sum));
}

// Whether the state that enters the run reaches the piece.
template <bool kRight>
__device__ bool reaches(const LinearWork& work, const LinearPiece& piece) {
  if (piece.chunk_begin == piece.chunk_end) return false;
  const LinearChunk& chunk = work.chunks[kRight ? piece.chunk_begin : piece.chunk_end - 1];
  return (kRight ? chunk.before : chunk.after) >= 0;
}

}  // namespace longhaul::kernels::cuda
