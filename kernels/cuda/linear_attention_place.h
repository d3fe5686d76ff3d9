// What the kernels of linear attention share: which piece, head and columns a block has, and powers
// of the decay.
#pragma once

#include "kernels/cuda/linear_attention_passes.h"

namespace longhaul::kernels::cuda {

inline constexpr int kLinearColumns = 32;  // of z, for a block

inline int column_tiles(int columns) { return (columns + kLinearColumns - 1) / kLinearColumns; }

// What a block is about.
struct LinearPlace {
  int64_t number;  // of the piece
  LinearPiece piece;
  int64_t head;
  int column;  // its first of z
  double slope;

  __device__ LinearPlace(const LinearWork& work, int tiles)
      : number(blockIdx.x / tiles / work.heads),
        piece(work.pieces[number]),
        head(blockIdx.x / tiles % work.heads),
        column(static_cast<int>(blockIdx.x % tiles) * kLinearColumns),
        slope(work.slopes[head]) {}

  // body(chunk, whether it is the last one), in the pass's direction.
  template <bool kRight, class Body>
  __device__ void for_chunks(const LinearWork& work, Body&& body) const {
    const int64_t count = piece.chunk_end - piece.chunk_begin;
    for (int64_t n = 0; n < count; ++n) {
      const int64_t at = kRight ? piece.chunk_begin + n : piece.chunk_end - 1 - n;
      body(work.chunks[at], n + 1 == count);
    }
  }
  // Whether states leave the run here.
  template <bool kRight>
  __device__ bool at_end() const {
    return kRight ? piece.last : piece.first;
  }
};

// LinearPowers of the decay up to that of a whole chunk, rounded, and what rounding took away.
template <class A>
struct LinearPowers {
  A rounded[kMostChunkRows + 1], rest[kMostChunkRows + 1];

  __device__ void fill(double slope) {
    const int n = static_cast<int>(threadIdx.x);
    if (n > kMostChunkRows) return;
    const double exact = exp(-slope * n);
    rounded[n] = static_cast<A>(exact);
    rest[n] = static_cast<A>(exact - static_cast<double>(rounded[n]));
  }
  // How far row i has decayed what enters its chunk of `rows` rows, and what is left of row i where
  // the chunk is left.
  template <bool kRight>
  __device__ A enter(int i, int rows) const {
    return rounded[kRight ? i + 1 : rows - 1 - i];
  }
  template <bool kRight>
  __device__ A leave(int i, int rows) const {
    return rounded[kRight ? rows - 1 - i : i + 1];
  }
};

// a^n for any n.
template <class A>
__device__ __forceinline__ A decay_over(double slope, int64_t n) {
  return exp(static_cast<A>(-slope * static_cast<double>(n)));
}

// Element (c, n) of a state in memory.
__device__ __forceinline__ int64_t state_index(bool turned, int64_t c, int64_t n, int dim,
                                               int columns) {
  return turned ? n * dim + c : c * columns + n;
}

// The block's columns of row i of the chunk.
template <class A>
__device__ __forceinline__ A* result_at(A* result, const LinearChunk& chunk, int64_t i,
                                        int64_t heads, int64_t head, int columns, int column) {
  return result + ((chunk.begin + i) * heads + head) * columns + column;
}

// A block of threads for every piece, head and kLinearColumns of `columns`.
template <int kThreadsOfBlock, class Kernel, class Pass>
void launch_pieces(const Context& ctx, const char* name, Kernel kernel, const LinearWork& work,
                   const Pass& pass, int columns, size_t shared_bytes) {
  const int tiles = column_tiles(columns);
  launch(ctx, name, kernel,
         {.blocks = dim3(static_cast<unsigned>(work.piece_count * work.heads * tiles)),
          .threads = dim3(kThreadsOfBlock),
          .shared_bytes = shared_bytes},
         work, pass, tiles);
}

}  // namespace longhaul::kernels::cuda
