// The walk over tiles of rows that the kernels of every device share: one product makes a tile's
// logits in scratch, losses() turns them into losses and gradients in place, and two products take
// the gradients on. The gradients, of the storage type, lie at the starts of the logits' rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/core/context.h"
#include "kernels/gemm.h"
#include "kernels/linear_cross_entropy.h"

namespace longhaul::kernels {

struct LossTiles {
  int64_t bytes = 0;    // of a tile, where the caller does not choose its rows
  int64_t padding = 1;  // elements that a row of logits is rounded up to
};

// Calls losses(logits, first) for tiles of the tokens from `first` on; logits [tokens, V] of the
// accumulator type. While measuring, only takes scratch.
template <class T, class Losses>
void for_loss_tiles(const Context& ctx, const LinearCrossEntropy& args, const LossTiles& tiles,
                    const Losses& losses) {
  using A = Accumulator<T>;
  constexpr int64_t kNarrower = sizeof(A) / sizeof(T);
  const Arena::Scope scope(*ctx.scratch);
  const int64_t tokens = args.x.dim(0), vocabulary = args.weight.dim(0);
  const int64_t stride = (vocabulary + tiles.padding - 1) / tiles.padding * tiles.padding;
  const int64_t row_bytes = std::max<int64_t>(1, stride * size_of(dtype_of<A>));
  const int64_t most =
      args.tile_rows > 0 ? args.tile_rows : std::max<int64_t>(1, tiles.bytes / row_bytes);
  const int64_t rows = std::min(most, tokens);
  const TensorView memory = ctx.scratch->allocate(dtype_of<A>, {rows, stride});
  if (tokens == 0) return;

  const auto tile = [&](int64_t first, int64_t count) {
    const TensorView logits = memory.rows(0, count).slice(1, 0, vocabulary);
    const ConstTensorView x = args.x.rows(first, count);
    gemm(ctx, {.transpose_b = Transpose::kYes, .a = x, .b = args.weight, .c = logits});
    if (!ctx.measuring()) losses(logits, first);
    if (!args.with_gradients) return;
    const TensorView gradient(logits.raw(), dtype_of<T>, {count, vocabulary},
                              {stride * kNarrower, 1}, logits.device());
    gemm(ctx, {.a = gradient, .b = args.weight, .c = args.dx.rows(first, count)});
    if (args.dweight.rank() == 0) return;
    gemm(ctx,
         {.transpose_a = Transpose::kYes, .a = gradient, .b = x, .c = args.dweight, .beta = 1.0});
  };
  if (ctx.measuring()) {
    // Products of the two tile heights that occur: their scratch is all that varies.
    tile(0, rows);
    if (tokens % rows != 0) tile(0, tokens % rows);
    return;
  }
  for (int64_t t = 0; t < tokens; t += rows) tile(t, std::min(rows, tokens - t));
}

}  // namespace longhaul::kernels
