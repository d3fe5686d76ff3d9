// Small pieces of device code that kernels share. Sums have a fixed order: a butterfly over a
// warp's lanes, then warp by warp.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cuda/launch.h"

namespace longhaul::kernels::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

// This thread's first item and its distance to the next, over the whole grid's x.
__device__ __forceinline__ int64_t grid_first() {
  return int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
}
__device__ __forceinline__ int64_t grid_stride() { return int64_t{gridDim.x} * blockDim.x; }

// Whether two f32 may be read or written there at once: results may begin at any element.
__device__ __forceinline__ bool aligned_pair(const float* p) {
  return reinterpret_cast<uintptr_t>(p) % sizeof(float2) == 0;
}

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}
template <class T>
__device__ __forceinline__ T warp_max(T x) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, x, mask);
    x = x > other ? x : other;
  }
  return x;
}

// Of all threads of a one-dimensional block of whole warps, given to all of them; `shared` has room
// for one T per warp. Ends with a barrier, so `shared` may be used again.
template <class T, class Combine>
__device__ __forceinline__ T block_reduce(T of_warp, T* shared, Combine&& combine) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = of_warp;
  __syncthreads();
  T result = shared[0];
  for (int warp = 1; warp < warps; ++warp) result = combine(result, shared[warp]);
  __syncthreads();
  return result;
}
template <class T>
__device__ __forceinline__ T block_sum(T x, T* shared) {
  return block_reduce(warp_sum(x), shared, [](T a, T b) { return a + b; });
}
template <class T>
__device__ __forceinline__ T block_max(T x, T* shared) {
  return block_reduce(warp_max(x), shared, [](T a, T b) { return a > b ? a : b; });
}

}  // namespace longhaul::kernels::cuda
