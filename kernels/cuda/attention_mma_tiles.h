// What attention kernels on tensor cores share: rows in shared memory, products of tiles, and the
// place of elements in registers.
//
// Rows in shared memory are padded by 16 bytes, so that the 8 rows of an 8x8 matrix lie in
// different banks. A warp's results are tiles of 16x8 (hardware.h): lane l holds elements (g, 2t),
// (g, 2t + 1), (g + 8, 2t) and (g + 8, 2t + 1), with g = l / 4 and t = l % 4. Two of them side by
// side, rounded to bf16, are the left operand of the next product as they stand.
#pragma once

#include "kernels/cuda/attention_arguments.h"
#include "kernels/cuda/device_code.h"
#include "kernels/cuda/hardware.h"

namespace longhaul::kernels::cuda {

inline constexpr int kMmaWarps = 4;
inline constexpr int kMmaThreads = kMmaWarps * kWarp;

// Rows of a step: two blocks of a kernel share a multiprocessor up to a kDim of 128, on an A100
// too.
template <int kDim>
inline constexpr int kMmaStep = kDim <= 64 ? 64 : 32;

template <int kDim>
inline constexpr int kPaddedRow = kDim + 8;
template <int kRows, int kDim>
inline constexpr int kTileElements = kRows* kPaddedRow<kDim>;

template <int kTiles, int kColumnTiles>
using MmaTiles = float[kTiles][kColumnTiles][4];
// Left operands of products over 16 kDepth elements.
template <int kTiles, int kDepth>
using MmaOperand = uint32_t[kTiles][kDepth][4];

__device__ __forceinline__ int mma_warp() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int mma_lane() { return static_cast<int>(threadIdx.x) % kWarp; }
// Of element 0 of a 16x8 tile.
__device__ __forceinline__ int mma_row() { return mma_lane() / 4; }
__device__ __forceinline__ int mma_column() { return mma_lane() % 4 * 2; }

// Starts to copy rows [first, first + count) of one head to shared memory: kRows rows, of which
// what is not there is 0. Rows that do not lie in whole 16 bytes are copied at once.
template <int kRows, int kDim>
__device__ __forceinline__ void load_rows(const Operand<bf16>& x, int64_t head, int64_t first,
                                          int count, bf16* to) {
  constexpr int kChunk = 8, kChunks = kDim / kChunk;
  static_assert(kRows * kChunks % kMmaThreads == 0);
  const bf16* const from = x.of_head(head).row(first);
  if (x.in_16_bytes) {
#pragma unroll
    for (int n = 0; n < kRows * kChunks / kMmaThreads; ++n) {
      const int chunk = n * kMmaThreads + static_cast<int>(threadIdx.x);
      const int r = chunk / kChunks, c = chunk % kChunks * kChunk;
      const bool take = r < count && c < x.dim;
      copy_16_async(to + r * kPaddedRow<kDim> + c, take ? from + r * x.token + c : x.p, take);
    }
    return;
  }
#pragma unroll 1
  for (int n = static_cast<int>(threadIdx.x); n < kRows * kDim; n += kMmaThreads) {
    const int r = n / kDim, c = n % kDim;
    to[r * kPaddedRow<kDim> + c] = r < count && c < x.dim ? from[r * x.token + c] : bf16(0.0f);
  }
}

// Where a lane's row of the four 8x8 matrices begins: of a 16x16 left operand, and of a right one
// whose depth runs down the rows (transposed as it is loaded).
template <int kDim>
__device__ __forceinline__ int offset_along(int row, int column) {
  const int matrix = mma_lane() / 8, r = mma_lane() % 8;
  return (row + matrix % 2 * 8 + r) * kPaddedRow<kDim> + column + matrix / 2 * 8;
}
// Of a right operand whose depth runs along the rows.
template <int kDim>
__device__ __forceinline__ int offset_across(int row, int column) {
  const int matrix = mma_lane() / 8, r = mma_lane() % 8;
  return (row + matrix / 2 * 8 + r) * kPaddedRow<kDim> + column + matrix % 2 * 8;
}

template <int kTiles, int kColumnTiles>
__device__ __forceinline__ void clear(MmaTiles<kTiles, kColumnTiles>& tiles) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) tiles[m][n][e] = 0.0f;
    }
  }
}

// result += left right, where right's columns are tiles n and n + 1.
template <int kTiles, int kColumnTiles>
__device__ __forceinline__ void multiply_two(const uint32_t (&left)[kTiles][4],
                                             const uint32_t (&right)[4], int n,
                                             MmaTiles<kTiles, kColumnTiles>& result) {
  const uint32_t first[2] = {right[0], right[1]}, second[2] = {right[2], right[3]};
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
    mma_16x8x16(result[m][n], left[m], first);
    mma_16x8x16(result[m][n + 1], left[m], second);
  }
}

// result = products of 16 kTiles rows with 8 kColumnTiles rows, all in shared memory.
template <int kDim, int kTiles, int kColumnTiles>
__device__ __forceinline__ void multiply_rows(const bf16* left, const bf16* right,
                                              MmaTiles<kTiles, kColumnTiles>& result) {
  clear(result);
#pragma unroll
  for (int k = 0; k < kDim; k += 16) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) load_matrices(a[m], left + offset_along<kDim>(16 * m, k));
#pragma unroll
    for (int n = 0; n < kColumnTiles; n += 2) {
      uint32_t b[4];
      load_matrices(b, right + offset_across<kDim>(8 * n, k));
      multiply_two(a, b, n, result);
    }
  }
}

// sums += weights times 16 kDepth rows in shared memory.
template <int kDim, int kTiles, int kDepth>
__device__ __forceinline__ void add_products(const MmaOperand<kTiles, kDepth>& weights,
                                             const bf16* rows, MmaTiles<kTiles, kDim / 8>& sums) {
#pragma unroll
  for (int k = 0; k < kDepth; ++k) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int m = 0; m < kTiles; ++m) {
#pragma unroll
      for (int e = 0; e < 4; ++e) a[m][e] = weights[m][k][e];
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t b[4];
      load_matrices_transposed(b, rows + offset_along<kDim>(16 * k, 8 * n));
      multiply_two(a, b, n, sums);
    }
  }
}

// Rounded to bf16, as the left operand of the next product.
template <int kTiles, int kColumnTiles>
__device__ __forceinline__ void round_to_operand(const MmaTiles<kTiles, kColumnTiles>& tiles,
                                                 MmaOperand<kTiles, kColumnTiles / 2>& operand) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int k = 0; k < kColumnTiles / 2; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float(&tile)[4] = tiles[m][2 * k + half];
        operand[m][k][2 * half] = pack_bf16(tile[0], tile[1]);
        operand[m][k][2 * half + 1] = pack_bf16(tile[2], tile[3]);
      }
    }
  }
}

// Which elements of tiles of probabilities dropout keeps: bit 4 (m kColumnTiles + n) + e. Positions
// are those of the lane's first element, and steps those from a row or a column to the next. One
// after the other, as the code for a random word is long.
template <int kTiles, int kColumnTiles, class KeepElement>
__device__ __forceinline__ uint64_t kept_elements(KeepElement&& keep) {
  static_assert(kTiles * kColumnTiles * 4 <= 64);
  uint64_t bits = 0;
#pragma unroll 1
  for (int n = 0; n < kTiles * kColumnTiles * 4; ++n) {
    const int row = n / 4 / kColumnTiles * 16 + n / 2 % 2 * 8,
              column = n / 4 % kColumnTiles * 8 + n % 2;
    bits |= static_cast<uint64_t>(keep(row, column)) << n;
  }
  return bits;
}
template <int kTiles, int kColumnTiles>
__device__ __forceinline__ uint64_t kept_by_queries(const HeadScores<float, true>& scores,
                                                    const Segment& s, int64_t q_position,
                                                    int64_t k_position) {
  return kept_elements<kTiles, kColumnTiles>([&](int row, int column) {
    return scores.keeps(q_position + row * s.stride, k_position + column * s.stride);
  });
}
template <int kTiles, int kColumnTiles>
__device__ __forceinline__ uint64_t kept_by_keys(const HeadScores<float, true>& scores,
                                                 const Segment& s, int64_t q_position,
                                                 int64_t k_position) {
  return kept_elements<kTiles, kColumnTiles>([&](int row, int column) {
    return scores.keeps(q_position + column * s.stride, k_position + row * s.stride);
  });
}
__device__ __forceinline__ bool has_bit(uint64_t bits, int n) { return (bits >> n) % 2 != 0; }

template <int kTiles, int kColumnTiles>
__device__ __forceinline__ void drop(uint64_t kept, float factor,
                                     MmaTiles<kTiles, kColumnTiles>& tiles) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int n = 0; n < kColumnTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        tiles[m][n][e] *= has_bit(kept, 4 * (m * kColumnTiles + n) + e) ? factor : 0.0f;
      }
    }
  }
}

// P = 2^(S - lse), after dropout, and dS / scale of one element.
struct ScoreGradient {
  float p, ds;
};
template <bool kGeneral>
__device__ __forceinline__ ScoreGradient score_gradient(const HeadScores<float, kGeneral>& scores,
                                                        float factor, float product, float dp,
                                                        float lse, float delta, bool kept,
                                                        int64_t distance) {
  if constexpr (kGeneral) {
    float derivative;
    const float p = fast_exp2(scores.score(product, distance, derivative) - lse);
    const float of_dropout = kept ? scores.kept_factor() : 0.0f;
    return {p * of_dropout, p * (dp * of_dropout - delta) * derivative};
  } else {
    const float p = fast_exp2(fmaf(product, factor, -lse));
    return {p, p * (dp - delta)};
  }
}

// Sum and largest of the four lanes that hold a row.
__device__ __forceinline__ float row_sum(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ __forceinline__ float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAllLanes, x, 2));
}

// to = to * keep + (a, b) for columns c and c + 1 of a row of `dim` f32.
__device__ __forceinline__ void mix_pair(float* row, int c, int dim, float keep, float a, float b) {
  float* const to = row + c;
  if (c + 1 < dim && aligned_pair(to)) {
    auto& pair = *reinterpret_cast<float2*>(to);
    const float2 before = pair;
    pair = make_float2(before.x * keep + a, before.y * keep + b);
    return;
  }
  if (c < dim) to[0] = to[0] * keep + a;
  if (c + 1 < dim) to[1] = to[1] * keep + b;
}

// A warp's rows [first, first + 16 kTiles) of the block's tile += factor * sums, for rows below
// `count`. `to` is row 0 of the block's.
template <int kTiles, int kColumnTiles>
__device__ __forceinline__ void add_rows(const MmaTiles<kTiles, kColumnTiles>& sums, float factor,
                                         float* to, int64_t stride, int first, int count, int dim) {
#pragma unroll
  for (int m = 0; m < kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = first + 16 * m + 8 * half + mma_row();
      if (r >= count) continue;
#pragma unroll
      for (int n = 0; n < kColumnTiles; ++n) {
        mix_pair(to + r * stride, 8 * n + mma_column(), dim, 1.0f, factor * sums[m][n][2 * half],
                 factor * sums[m][n][2 * half + 1]);
      }
    }
  }
}

}  // namespace longhaul::kernels::cuda
