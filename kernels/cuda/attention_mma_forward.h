// Attention forward on tensor cores, after "FlashAttention-2" (Dao 2023).
//
// A block of four warps owns the rows of a query tile of one head, 16 kTiles of them a warp, and
// walks through the keys that they see. Keys and values of the next step are copied to shared
// memory while this step is computed. A warp keeps O, m and l of its rows in registers and takes
// kSub keys at a time:
//
//     S = Q K^T     m' = max(m, rows of S)     P = 2^(S - m')     l = l 2^(m - m') + rows of P
//     O = O 2^(m - m') + P V                   with P rounded to bf16, and l of what is not rounded
//
// At last (out, lse) <- merge((out, lse), (O / l, m + log l)), so a row to which no key was added
// keeps its bits.
#pragma once

#include "kernels/cuda/attention_mma.h"
#include "kernels/cuda/attention_mma_steps.h"
#include "kernels/cuda/attention_mma_tiles.h"

namespace longhaul::kernels::cuda {

template <int kDim_>
struct ForwardShape {
  static constexpr int kDim = kDim_;
  static constexpr int kTiles = kDim <= 128 ? 2 : 1;  // of 16 rows, of a warp
  static constexpr int kRows = kMmaWarps * 16 * kTiles;
  static constexpr int kKeys = kMmaStep<kDim>;       // of a step
  static constexpr int kSub = kDim <= 64 ? 64 : 32;  // keys in registers
  static constexpr int kStage = 2 * kTileElements<kKeys, kDim>;
  static constexpr size_t kSharedBytes = sizeof(bf16) * (kTileElements<kRows, kDim> + 2 * kStage);
};

template <class Shape>
struct RowStates {
  float max[Shape::kTiles][2], sum[Shape::kTiles][2];  // sum: of this lane's columns
  MmaTiles<Shape::kTiles, Shape::kDim / 8> out;
};

// Scores, in units of log 2, of the warp's rows (row 0 is the tile's `first`) with keys from `from`
// on. What is masked becomes -inf. Plain scores are still to be multiplied by the factor.
template <class Shape, bool kGeneral>
__device__ __forceinline__ void make_scores(const HeadScores<float, kGeneral>& scores,
                                            const Segment& s, int64_t q_position,
                                            int64_t k_position, const StepMask& mask,
                                            TileMask tile_mask, int first, int from,
                                            MmaTiles<Shape::kTiles, Shape::kSub / 8>& x) {
  if constexpr (kGeneral) {
    const int64_t distance = q_position - k_position;
#pragma unroll
    for (int m = 0; m < Shape::kTiles; ++m) {
#pragma unroll
      for (int n = 0; n < Shape::kSub / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int r = first + 16 * m + mma_row() + e / 2 * 8;
          const int c = from + 8 * n + mma_column() + e % 2;
          x[m][n][e] = scores.score(x[m][n][e], distance + (r - c) * s.stride);
        }
      }
    }
  }
  if (tile_mask == TileMask::kFull) return;
#pragma unroll
  for (int m = 0; m < Shape::kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const StepMask::Range seen = mask.of_row(first + 16 * m + mma_row() + half * 8);
#pragma unroll
      for (int n = 0; n < Shape::kSub / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = x[m][n][2 * half + e];
          score = seen.has(from + 8 * n + mma_column() + e)
                      ? score
                      : -std::numeric_limits<float>::infinity();
        }
      }
    }
  }
}

// P = 2^(S - m'), the new m and l, and O as if it had been summed up with m'.
template <class Shape>
__device__ __forceinline__ void make_probabilities(float factor,
                                                   MmaTiles<Shape::kTiles, Shape::kSub / 8>& x,
                                                   RowStates<Shape>& state) {
  constexpr float kNothing = -std::numeric_limits<float>::infinity();
#pragma unroll
  for (int m = 0; m < Shape::kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = kNothing;
#pragma unroll
      for (int n = 0; n < Shape::kSub / 8; ++n) {
        largest = fmaxf(largest, fmaxf(x[m][n][2 * half], x[m][n][2 * half + 1]));
      }
      const float before = state.max[m][half];
      const float now = fmaxf(before, row_max(largest) * factor);
      // A row that has seen nothing yet has m = -inf; any finite shift will do.
      const float shift = now == kNothing ? 0.0f : now;
      float sum = state.sum[m][half];
      // Once the largest keys have passed, m stays for most of the others.
      if (__any_sync(kAllLanes, now != before)) {
        const float rescale = fast_exp2(before - shift);
        sum *= rescale;
#pragma unroll
        for (int n = 0; n < Shape::kDim / 8; ++n) {
          state.out[m][n][2 * half] *= rescale;
          state.out[m][n][2 * half + 1] *= rescale;
        }
      }
#pragma unroll
      for (int n = 0; n < Shape::kSub / 8; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          const float p = fast_exp2(fmaf(x[m][n][e], factor, -shift));
          sum += p;
          x[m][n][e] = p;
        }
      }
      state.max[m][half] = now;
      state.sum[m][half] = sum;
    }
  }
}

template <class Shape>
__device__ __forceinline__ void merge_rows(const AttentionArguments<bf16>& args,
                                           const AttentionTile& tile, int64_t head, int first,
                                           const RowStates<Shape>& state) {
  const int count = static_cast<int>(tile.end - tile.begin);
#pragma unroll
  for (int m = 0; m < Shape::kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float total = row_sum(state.sum[m][half]);
      const int r = first + 16 * m + 8 * half + mma_row();
      const bool added = r < count && total != 0.0f;
      const int64_t row = tile.begin + r;
      float* const lse = args.lse + head * args.queries + row;
      MergeFactors<float> f{};
      if (added) {
        const float part = (state.max[m][half] + log2f(total)) / static_cast<float>(kLog2E);
        f = merge_factors(*lse, part);
      }
      __syncwarp();  // all have read lse
      if (!added) continue;
      if (mma_column() == 0) *lse = f.lse;
      float* const to = args.out + row * args.out_stride + head * args.v.dim;
      const float take = f.second / total;
#pragma unroll
      for (int n = 0; n < Shape::kDim / 8; ++n) {
        mix_pair(to, 8 * n + mma_column(), args.v.dim, f.first, take * state.out[m][n][2 * half],
                 take * state.out[m][n][2 * half + 1]);
      }
    }
  }
}

template <class Shape, bool kGeneral>
__global__ void __launch_bounds__(kMmaThreads)
    forward_mma_kernel(AttentionWork work, AttentionArguments<bf16> args) {
  constexpr int kDim = Shape::kDim, kSub = Shape::kSub;
  bf16* const q = reinterpret_cast<bf16*>(dynamic_shared());
  bf16* const stages = q + kTileElements<Shape::kRows, kDim>;
  const auto [tile, head] = tile_of_block(work, args.q_heads);
  const int64_t kv_head = args.heads.kv_head(head);
  const HeadScores<float, kGeneral> scores(args.options, args.heads, head);
  const int first = mma_warp() * 16 * Shape::kTiles;

  const auto load_step = [&](const KeySteps<Shape::kKeys>& step, int stage) {
    const int64_t row = step.segment(work).k_row + step.key();
    bf16* const k = stages + stage * Shape::kStage;
    load_rows<Shape::kKeys, kDim>(args.k, kv_head, row, step.keys(), k);
    load_rows<Shape::kKeys, kDim>(args.v, kv_head, row, step.keys(),
                                  k + kTileElements<Shape::kKeys, kDim>);
    commit_copies();
  };

  RowStates<Shape> state;
  clear(state.out);
#pragma unroll
  for (int m = 0; m < Shape::kTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state.max[m][half] = -std::numeric_limits<float>::infinity();
      state.sum[m][half] = 0.0f;
    }
  }

  KeySteps<Shape::kKeys> step(work, tile);
  load_rows<Shape::kRows, kDim>(args.q, head, tile.begin, static_cast<int>(tile.end - tile.begin),
                                q);
  load_step(step, 0);
  bool more = true;
  for (int stage = 0; more; stage ^= 1) {
    wait_copies<0>();
    __syncthreads();  // this stage has come, and nobody reads the other any more
    const KeySteps<Shape::kKeys> now = step;
    more = step.next(work, tile);
    if (more) load_step(step, stage ^ 1);

    const Segment& s = now.segment(work);
    const int64_t q_position = s.q_pos + (tile.begin - s.q_row) * s.stride;
    const int64_t k_position = s.k_pos + now.key() * s.stride;
    const bf16* const k = stages + stage * Shape::kStage;
    const bf16* const v = k + kTileElements<Shape::kKeys, kDim>;
#pragma unroll 1
    for (int from = 0; from < Shape::kKeys; from += kSub) {
      // Made twice, since it would take registers while products are made.
      const TileMask tile_mask =
          now.mask(work, tile).of_tile(first, 16 * Shape::kTiles, from, kSub);
      if (tile_mask == TileMask::kEmpty) continue;
      MmaTiles<Shape::kTiles, kSub / 8> x;
      multiply_rows<kDim>(q + first * kPaddedRow<kDim>, k + from * kPaddedRow<kDim>, x);
      make_scores<Shape>(scores, s, q_position, k_position, now.mask(work, tile), tile_mask, first,
                         from, x);
      make_probabilities<Shape>(kGeneral ? 1.0f : args.options.factor, x, state);
      if constexpr (kGeneral) {
        if (args.options.threshold > 0) {
          const uint64_t kept = kept_by_queries<Shape::kTiles, kSub / 8>(
              scores, s, q_position + (first + mma_row()) * s.stride,
              k_position + (from + mma_column()) * s.stride);
          drop(kept, scores.kept_factor(), x);
        }
      }
      MmaOperand<Shape::kTiles, kSub / 16> p;
      round_to_operand<Shape::kTiles, kSub / 8>(x, p);
      add_products<kDim>(p, v + from * kPaddedRow<kDim>, state.out);
    }
  }
  merge_rows<Shape>(args, tile, head, first, state);
}

template <int kDim>
void forward_mma(const Context& ctx, const AttentionForward& args) {
  using Shape = ForwardShape<kDim>;
  const auto of_work = [&](const AttentionWork& work) {
    const AttentionArguments<bf16> arguments_of_call = arguments<bf16>(args);
    // The plain instance takes the largest product for the largest score.
    const bool plain = args.options.plain() && arguments_of_call.options.factor > 0;
    launch(ctx, "attention forward",
           plain ? forward_mma_kernel<Shape, false> : forward_mma_kernel<Shape, true>,
           {.blocks = blocks_of(work, args.q.dim(1)),
            .threads = dim3(kMmaThreads),
            .shared_bytes = Shape::kSharedBytes},
           work, arguments_of_call);
  };
  for_work(ctx, query_tiles, args.segments, args.q.dim(0), Shape::kRows, of_work);
}

}  // namespace longhaul::kernels::cuda
