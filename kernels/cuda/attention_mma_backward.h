// Attention backward on tensor cores: dq by query tiles, dk and dv by key tiles. Scores are made in
// both, seven products instead of five, for sums in a fixed order without atomics.
#pragma once

#include "kernels/cuda/attention_mma_key_gradients.h"
#include "kernels/cuda/attention_mma_query_gradient.h"

namespace longhaul::kernels::cuda {

template <class Shape>
void launch_key_gradients(const Context& ctx, const AttentionWork& work, bool plain,
                          const AttentionArguments<bf16>& args) {
  launch(ctx, "attention backward, dk and dv",
         plain ? key_gradients_mma_kernel<Shape, false> : key_gradients_mma_kernel<Shape, true>,
         {.blocks = blocks_of(work, args.kv_heads),
          .threads = dim3(kMmaThreads),
          .shared_bytes = Shape::kSharedBytes},
         work, args);
}

template <int kDim>
void backward_mma(const Context& ctx, const AttentionBackward& args) {
  using Queries = QueryGradientShape<kDim>;
  using Keys = KeyGradientShape<kDim, true, true>;
  const bool plain = args.options.plain();
  const auto by_queries = [&](const AttentionWork& work) {
    launch(ctx, "attention backward, dq",
           plain ? query_gradient_mma_kernel<Queries, false>
                 : query_gradient_mma_kernel<Queries, true>,
           {.blocks = blocks_of(work, args.q.dim(1)),
            .threads = dim3(kMmaThreads),
            .shared_bytes = Queries::kSharedBytes},
           work, arguments<bf16>(args));
  };
  const auto by_keys = [&](const AttentionWork& work) {
    const AttentionArguments<bf16> of_call = arguments<bf16>(args);
    if constexpr (kDim <= 128) {
      launch_key_gradients<Keys>(ctx, work, plain, of_call);
    } else {
      launch_key_gradients<KeyGradientShape<kDim, true, false>>(ctx, work, plain, of_call);
      launch_key_gradients<KeyGradientShape<kDim, false, true>>(ctx, work, plain, of_call);
    }
  };
  for_work(ctx, query_tiles, args.segments, args.q.dim(0), Queries::kRows, by_queries);
  for_work(ctx, key_tiles, args.segments, args.k.dim(0), Keys::kRows, by_keys);
}

}  // namespace longhaul::kernels::cuda
