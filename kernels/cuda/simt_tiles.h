// What kernels without tensor cores share: tiles of 32 x 32 in shared memory, for blocks of 8 warps
// of which warp w has rows 4 w .. 4 w + 3.
#pragma once

#include "kernels/cuda/attention_arguments.h"
#include "kernels/cuda/device_code.h"

namespace longhaul::kernels::cuda {

inline constexpr int kSide = 32;  // of a tile
inline constexpr int kRows = 4;   // of a warp
inline constexpr int kWarps = kSide / kRows;
inline constexpr int kThreads = kWarps * kWarp;

template <class A>
using Tile = A[kSide][kSide + 1];

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x) / kWarp; }

// Rows [0, count) of one head from a row on; the tile's other rows are 0.
template <class T>
struct TileRows {
  HeadRows<T> from;
  int64_t first;
  int count, dim;
};

// Columns [begin, begin + kSide).
template <class T, class A>
__device__ void load(const TileRows<T>& rows, int begin, Tile<A>& tile) {
  const int column = begin + lane();
  for (int r = warp(); r < kSide; r += kWarps) {
    tile[r][lane()] = r < rows.count && column < rows.dim
                          ? static_cast<A>(rows.from.row(rows.first + r)[column])
                          : A(0);
  }
}

}  // namespace longhaul::kernels::cuda
