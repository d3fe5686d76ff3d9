// dq of attention on tensor cores: a block owns the rows of a query tile of one head, and walks
// through the keys that they see, as the forward pass does. P is made again from the final lse:
//
//     P = 2^(Q K^T - lse)      dS = P * (dO V^T - delta)      dQ += scale dS K
//
// dS is rounded to bf16 for its product. Dropout and soft-cap as in kernels/cpu.
#pragma once

#include "kernels/cuda/attention_mma.h"
#include "kernels/cuda/attention_mma_steps.h"
#include "kernels/cuda/attention_mma_tiles.h"

namespace longhaul::kernels::cuda {

template <int kDim_>
struct QueryGradientShape {
  static constexpr int kDim = kDim_;
  static constexpr int kRows = kMmaWarps * 16;
  static constexpr int kKeys = kMmaStep<kDim>;  // of a step
  static constexpr int kSub = 32;               // keys in registers
  static constexpr int kStage = 2 * kTileElements<kKeys, kDim>;
  static constexpr size_t kSharedBytes =
      sizeof(bf16) * (2 * kTileElements<kRows, kDim> + 2 * kStage);
};

template <class Shape, bool kGeneral>
__global__ void __launch_bounds__(kMmaThreads)
    query_gradient_mma_kernel(AttentionWork work, AttentionArguments<bf16> args) {
  constexpr int kDim = Shape::kDim, kSub = Shape::kSub;
  bf16* const q = reinterpret_cast<bf16*>(dynamic_shared());
  bf16* const dout = q + kTileElements<Shape::kRows, kDim>;
  bf16* const stages = dout + kTileElements<Shape::kRows, kDim>;
  const auto [tile, head] = tile_of_block(work, args.q_heads);
  const int64_t kv_head = args.heads.kv_head(head);
  const HeadScores<float, kGeneral> scores(args.options, args.heads, head);
  const int count = static_cast<int>(tile.end - tile.begin), first = mma_warp() * 16;

  const auto load_step = [&](const KeySteps<Shape::kKeys>& step, int stage) {
    const int64_t row = step.segment(work).k_row + step.key();
    bf16* const k = stages + stage * Shape::kStage;
    load_rows<Shape::kKeys, kDim>(args.k, kv_head, row, step.keys(), k);
    load_rows<Shape::kKeys, kDim>(args.v, kv_head, row, step.keys(),
                                  k + kTileElements<Shape::kKeys, kDim>);
    commit_copies();
  };

  float lse[2], delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = first + 8 * half + mma_row();
    const int64_t at = head * args.queries + tile.begin + r;
    lse[half] =
        r < count ? lse_for_backward(args.final_lse[at]) : std::numeric_limits<float>::infinity();
    delta[half] = r < count ? args.delta[at] : 0.0f;
  }
  MmaTiles<1, kDim / 8> dq;
  clear(dq);

  KeySteps<Shape::kKeys> step(work, tile);
  load_rows<Shape::kRows, kDim>(args.q, head, tile.begin, count, q);
  load_rows<Shape::kRows, kDim>(args.dout, head, tile.begin, count, dout);
  load_step(step, 0);
  bool more = true;
  for (int stage = 0; more; stage ^= 1) {
    wait_copies<0>();
    __syncthreads();  // this stage has come, and nobody reads the other any more
    const KeySteps<Shape::kKeys> now = step;
    more = step.next(work, tile);
    if (more) load_step(step, stage ^ 1);

    const StepMask mask = now.mask(work, tile);
    const Segment& s = now.segment(work);
    const int64_t q_position = s.q_pos + (tile.begin - s.q_row + first + mma_row()) * s.stride;
    const int64_t k_position = s.k_pos + (now.key() + mma_column()) * s.stride;
    const bf16* const k = stages + stage * Shape::kStage;
    const bf16* const v = k + kTileElements<Shape::kKeys, kDim>;
#pragma unroll 1
    for (int from = 0; from < Shape::kKeys; from += kSub) {
      const TileMask tile_mask = mask.of_tile(first, 16, from, kSub);
      if (tile_mask == TileMask::kEmpty) continue;
      uint64_t kept = 0;
      if constexpr (kGeneral) {
        kept = kept_by_queries<1, kSub / 8>(scores, s, q_position, k_position + from * s.stride);
      }
      MmaTiles<1, kSub / 8> x, dp;
      multiply_rows<kDim>(q + first * kPaddedRow<kDim>, k + from * kPaddedRow<kDim>, x);
      multiply_rows<kDim>(dout + first * kPaddedRow<kDim>, v + from * kPaddedRow<kDim>, dp);
      const auto make = [&](auto masked) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const StepMask::Range seen = mask.of_row(first + 8 * half + mma_row());
#pragma unroll
          for (int n = 0; n < kSub / 8; ++n) {
#pragma unroll
            for (int e = 2 * half; e < 2 * half + 2; ++e) {
              const int column = from + 8 * n + e % 2;
              const float ds =
                  score_gradient(scores, args.options.factor, x[0][n][e], dp[0][n][e], lse[half],
                                 delta[half], has_bit(kept, 4 * n + e),
                                 q_position - k_position + (8 * half - column) * s.stride)
                      .ds;
              // What is masked is selected away, not multiplied by 0.
              x[0][n][e] = !masked || seen.has(column + mma_column()) ? ds : 0.0f;
            }
          }
        }
      };
      if (tile_mask == TileMask::kFull) {
        make(std::false_type());
      } else {
        make(std::true_type());
      }
      MmaOperand<1, kSub / 16> ds;
      round_to_operand<1, kSub / 8>(x, ds);
      add_products<kDim>(ds, k + from * kPaddedRow<kDim>, dq);
    }
  }
  add_rows(dq, args.options.scale, args.dq + tile.begin * args.dq_stride + head * args.q.dim,
           args.dq_stride, first, count, args.q.dim);
}

}  // namespace longhaul::kernels::cuda
