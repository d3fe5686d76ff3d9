// Adds up what blocks have summed over their rows, in an order that depends on the shape alone:
// gradients of parameters that all rows share.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/launch.h"

namespace longhaul::kernels::cuda {

inline constexpr int kPartGroups = 8;  // of parts, which are added up side by side

// A warp takes every kPartGroups-th part of 32 columns; then the warps' sums are added in order.
template <class A>
__global__ void add_parts_kernel(int64_t parts, int64_t columns, int64_t stride, const A* from,
                                 A* to) {
  __shared__ A sums[kPartGroups][kWarp];
  const int group = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t column = int64_t{blockIdx.x} * kWarp + lane;
  A sum = 0;
  if (column < columns) {
#pragma unroll 8
    for (int64_t part = group; part < parts; part += kPartGroups) {
      sum += from[part * stride + column];
    }
  }
  sums[group][lane] = sum;
  __syncthreads();
  if (group > 0 || column >= columns) return;
  A total = to[column];
  for (int g = 0; g < kPartGroups; ++g) total += sums[g][lane];
  to[column] = total;
}

// to[c] += the sum of from[p * stride + c] over all parts p.
template <class A>
void add_parts(const Context& ctx, const char* name, int64_t parts, int64_t columns, int64_t stride,
               const A* from, A* to) {
  launch(ctx, name, add_parts_kernel<A>,
         {.blocks = dim3(static_cast<unsigned>((columns + kWarp - 1) / kWarp)),
          .threads = dim3(kPartGroups * kWarp)},
         parts, columns, stride, from, to);
}

}  // namespace longhaul::kernels::cuda
