// dk and dv of attention on tensor cores: a block owns the rows of a key tile of one kv head, 16 a
// warp, and walks through the queries that see them, of one query head of the group after the
// other. Everything is transposed, so that what is summed up lies in registers:
//
//     P^T = 2^(K Q^T - lse)    dS^T = P^T * (V dO^T - delta)
//     dV += P^T dO             dK += scale dS^T Q
//
// with P and dS rounded to bf16 for their products.
#pragma once

#include "kernels/cuda/attention_mma.h"
#include "kernels/cuda/attention_mma_steps.h"
#include "kernels/cuda/attention_mma_tiles.h"

namespace longhaul::kernels::cuda {

// Large heads have registers for one of dk and dv at a time.
template <int kDim_, bool kMakeK_, bool kMakeV_>
struct KeyGradientShape {
  static constexpr int kDim = kDim_;
  static constexpr bool kMakeK = kMakeK_, kMakeV = kMakeV_;
  static constexpr int kRows = kMmaWarps * 16;
  static constexpr int kQueries = kMmaStep<kDim>;    // of a step
  static constexpr int kSub = kDim <= 64 ? 32 : 16;  // queries in registers
  static constexpr int kStage = 2 * kTileElements<kQueries, kDim>;
  static constexpr size_t kSharedBytes =
      sizeof(bf16) * (2 * kTileElements<kRows, kDim> + 2 * kStage);
};

template <class Shape, bool kGeneral>
__global__ void __launch_bounds__(kMmaThreads)
    key_gradients_mma_kernel(AttentionWork work, AttentionArguments<bf16> args) {
  constexpr int kDim = Shape::kDim, kSub = Shape::kSub;
  bf16* const k = reinterpret_cast<bf16*>(dynamic_shared());
  bf16* const v = k + kTileElements<Shape::kRows, kDim>;
  bf16* const stages = v + kTileElements<Shape::kRows, kDim>;
  const auto [tile, kv_head] = tile_of_block(work, args.kv_heads);
  const IndexRange group = args.group_of(kv_head);
  if (group.begin >= group.end) return;
  const int count = static_cast<int>(tile.end - tile.begin), first = mma_warp() * 16;

  const auto load_step = [&](const QuerySteps<Shape::kQueries>& step, int stage) {
    const int64_t row = step.segment(work).q_row + step.query();
    bf16* const q = stages + stage * Shape::kStage;
    load_rows<Shape::kQueries, kDim>(args.q, step.head(), row, step.queries(), q);
    load_rows<Shape::kQueries, kDim>(args.dout, step.head(), row, step.queries(),
                                     q + kTileElements<Shape::kQueries, kDim>);
    commit_copies();
  };

  MmaTiles<1, Shape::kMakeK ? kDim / 8 : 1> dk;
  MmaTiles<1, Shape::kMakeV ? kDim / 8 : 1> dv;
  clear(dk);
  clear(dv);

  QuerySteps<Shape::kQueries> step(work, tile, group);
  load_rows<Shape::kRows, kDim>(args.k, kv_head, tile.begin, count, k);
  load_rows<Shape::kRows, kDim>(args.v, kv_head, tile.begin, count, v);
  load_step(step, 0);
  bool more = true;
  for (int stage = 0; more; stage ^= 1) {
    wait_copies<0>();
    __syncthreads();  // this stage has come, and nobody reads the other any more
    const QuerySteps<Shape::kQueries> now = step;
    more = step.next(work, tile, group);
    if (more) load_step(step, stage ^ 1);

    const StepMask mask = now.mask(work, tile);
    const Segment& s = now.segment(work);
    const HeadScores<float, kGeneral> scores(args.options, args.heads, now.head());
    const int64_t q_position = s.q_pos + (now.query() + mma_column()) * s.stride;
    const int64_t k_position = s.k_pos + (tile.begin - s.k_row + first + mma_row()) * s.stride;
    const int64_t statistics = now.head() * args.queries + s.q_row + now.query();
    const bf16* const q = stages + stage * Shape::kStage;
    const bf16* const dout = q + kTileElements<Shape::kQueries, kDim>;
#pragma unroll 1
    for (int from = 0; from < Shape::kQueries; from += kSub) {
      const TileMask tile_mask = mask.of_tile(first, 16, from, kSub);
      if (tile_mask == TileMask::kEmpty) continue;
      float lse[kSub / 8][2], delta[kSub / 8][2];
#pragma unroll
      for (int n = 0; n < kSub / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = from + 8 * n + mma_column() + e;
          const bool exists = column < mask.columns;
          lse[n][e] = exists ? lse_for_backward(args.final_lse[statistics + column])
                             : std::numeric_limits<float>::infinity();
          delta[n][e] = exists ? args.delta[statistics + column] : 0.0f;
        }
      }
      uint64_t kept = 0;
      if constexpr (kGeneral) {
        kept = kept_by_keys<1, kSub / 8>(scores, s, q_position + from * s.stride, k_position);
      }
      MmaTiles<1, kSub / 8> x, dp;
      multiply_rows<kDim>(k + first * kPaddedRow<kDim>, q + from * kPaddedRow<kDim>, x);
      if constexpr (Shape::kMakeK) {
        multiply_rows<kDim>(v + first * kPaddedRow<kDim>, dout + from * kPaddedRow<kDim>, dp);
      } else {
        clear(dp);
      }
      const auto make = [&](auto masked) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const StepMask::Range seen = mask.of_row(first + 8 * half + mma_row());
#pragma unroll
          for (int n = 0; n < kSub / 8; ++n) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
              const int column = from + 8 * n + e % 2;
              const ScoreGradient g =
                  score_gradient(scores, args.options.factor, x[0][n][e], dp[0][n][e],
                                 lse[n][e % 2], delta[n][e % 2], has_bit(kept, 4 * n + e),
                                 q_position - k_position + (column - 8 * half) * s.stride);
              // What is masked is selected away, not multiplied by 0.
              const bool sees = !masked || seen.has(column + mma_column());
              x[0][n][e] = sees ? g.p : 0.0f;
              dp[0][n][e] = sees ? g.ds : 0.0f;
            }
          }
        }
      };
      if (tile_mask == TileMask::kFull) {
        make(std::false_type());
      } else {
        make(std::true_type());
      }
      if constexpr (Shape::kMakeV) {
        MmaOperand<1, kSub / 16> p;
        round_to_operand<1, kSub / 8>(x, p);
        add_products<kDim>(p, dout + from * kPaddedRow<kDim>, dv);
      }
      if constexpr (Shape::kMakeK) {
        MmaOperand<1, kSub / 16> ds;
        round_to_operand<1, kSub / 8>(dp, ds);
        add_products<kDim>(ds, q + from * kPaddedRow<kDim>, dk);
      }
    }
  }
  if constexpr (Shape::kMakeK) {
    add_rows(dk, args.options.scale, args.dk + (tile.begin * args.kv_heads + kv_head) * args.k.dim,
             args.kv_heads * args.k.dim, first, count, args.k.dim);
  }
  if constexpr (Shape::kMakeV) {
    add_rows(dv, 1.0f, args.dv + (tile.begin * args.kv_heads + kv_head) * args.v.dim,
             args.kv_heads * args.v.dim, first, count, args.v.dim);
  }
}

}  // namespace longhaul::kernels::cuda
