// CUDA C++ as C++: the qualifiers, built-in variables, warp operations and launches that Longhaul's
// kernels use. The threads of a block are fibers of one thread; see ../emulator.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#include "cuda_runtime_api.h"
#include "tests/cuda_emulator/emulator.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
// One block runs at a time on a thread.
#define __shared__ static thread_local
#define __syncthreads() ::longhaul::cuda_emulator::meet_block()
#define __syncwarp(...) ::longhaul::cuda_emulator::meet_warp()

using dim3 = longhaul::cuda_emulator::Dim3;
using longhaul::cuda_emulator::blockDim;
using longhaul::cuda_emulator::blockIdx;
using longhaul::cuda_emulator::gridDim;
using longhaul::cuda_emulator::threadIdx;
inline constexpr int warpSize = 32;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// Every lane of the warp must take part, as in all of Longhaul's kernels.
template <class T>
T __shfl_sync(unsigned, T value, int lane, int width = 32) {
  const int base = longhaul::cuda_emulator::lane() / width * width;
  return longhaul::cuda_emulator::from_lane(value, base + lane % width);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int = 32) {
  return longhaul::cuda_emulator::from_lane(value, longhaul::cuda_emulator::lane() ^ mask);
}
template <class T>
T __shfl_down_sync(unsigned, T value, int delta, int width = 32) {
  const int lane = longhaul::cuda_emulator::lane();
  const bool inside = lane % width + delta < width;
  return longhaul::cuda_emulator::from_lane(value, inside ? lane + delta : lane);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta, int width = 32) {
  const int lane = longhaul::cuda_emulator::lane();
  const bool inside = lane % width >= delta;
  return longhaul::cuda_emulator::from_lane(value, inside ? lane - delta : lane);
}
inline unsigned __ballot_sync(unsigned, int predicate) {
  return longhaul::cuda_emulator::ballot(predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
inline int __syncthreads_or(int predicate) {
  return longhaul::cuda_emulator::any_of_block(predicate != 0);
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float exp2f(float x) { return std::exp2(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
// Blocks of one grid run one after the other.
template <class T>
T atomicMin(T* p, T value) {
  const T old = *p;
  *p = std::min(old, value);
  return old;
}
template <class T>
T atomicAdd(T* p, T value) {
  const T old = *p;
  *p = old + value;
  return old;
}

struct cudaLaunchConfig_t {
  dim3 gridDim;
  dim3 blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  if (config->dynamicSmemBytes >
      longhaul::cuda_emulator::allowed_shared_memory(reinterpret_cast<const void*>(kernel))) {
    return cudaErrorInvalidValue;
  }
  std::tuple<std::remove_cv_t<Parameters>...> copies(std::forward<Arguments>(arguments)...);
  return longhaul::cuda_emulator::submit(config->stream, [config = *config, kernel, copies] {
    return longhaul::cuda_emulator::run_grid(
        config.gridDim, config.blockDim, config.dynamicSmemBytes,
        [&] { std::apply([&](const auto&... each) { kernel(each...); }, copies); });
  });
}

struct cudaFuncAttributes {
  size_t sharedSizeBytes;  // static
};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || static_cast<size_t>(value) > longhaul::cuda_emulator::kMostSharedBytes) {
    return cudaErrorInvalidValue;
  }
  longhaul::cuda_emulator::allow_shared_memory(kernel, static_cast<size_t>(value));
  return cudaSuccess;
}
