// One value of all elements of a tensor, for the host. The order of combination depends on the
// number of elements and their type alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "kernels/core/transfer.h"
#include "kernels/cuda/pieces.h"

namespace longhaul::kernels::cuda {

inline constexpr int kReduceThreads = 256;
inline constexpr int64_t kReduceParts = 1024;         // at most
inline constexpr int64_t kReducePiecesPerThread = 4;  // at least, so that parts are worth a block

template <class Op>
__device__ typename Op::Value block_combine(typename Op::Value x) {
  using Value = typename Op::Value;
  __shared__ Value of_warps[kReduceThreads / kWarp];
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    x = Op::combine(x, __shfl_xor_sync(kAllLanes, x, mask));
  }
  return block_reduce(x, of_warps, [](Value a, Value b) { return Op::combine(a, b); });
}

// A thread combines the same elements with vectors and without, and so in the same order.
template <class Op, class T>
__global__ void reduce_elements_kernel(const T* x, int64_t n, bool vectors,
                                       typename Op::Value* parts) {
  constexpr int kN = kPiece<T>;
  typename Op::Value value = Op::start();
  for (int64_t i = grid_first() * kN; i < n; i += grid_stride() * kN) {
    const int64_t count = std::min<int64_t>(kN, n - i);
    Pack<T, kN> piece;
    if (vectors) {
      piece = load<kN>(x + i, count);
    } else {
#pragma unroll
      for (int k = 0; k < kN; ++k) piece.e[k] = x[i + std::min<int64_t>(k, count - 1)];
    }
#pragma unroll
    for (int k = 0; k < kN; ++k) {
      if (k < count) value = Op::combine(value, Op::of(static_cast<double>(piece.e[k]), i + k));
    }
  }
  value = block_combine<Op>(value);
  if (threadIdx.x == 0) parts[blockIdx.x] = value;
}

template <class Op>
__global__ void reduce_parts_kernel(const typename Op::Value* parts, int64_t count,
                                    typename Op::Value* result) {
  typename Op::Value value = Op::start();
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) value = Op::combine(value, parts[i]);
  value = block_combine<Op>(value);
  if (threadIdx.x == 0) *result = value;
}

// Nothing while measuring. Waits for the stream, calling ctx.poll meanwhile. x is contiguous.
template <class Op>
std::optional<typename Op::Value> reduce(const Context& ctx, const char* name, ConstTensorView x) {
  using Value = typename Op::Value;
  const int64_t n = x.elements();
  const int64_t pieces = (n * size_of(x.dtype()) + kVectorBytes - 1) / kVectorBytes;
  const Grid grid = grid_for((pieces + kReducePiecesPerThread - 1) / kReducePiecesPerThread,
                             kReduceThreads, kReduceParts);
  const int64_t count = grid.blocks.x;
  const Arena::Scope scope(*ctx.scratch);
  const TensorView parts = ctx.scratch->allocate(dtype_of<Value>, {count});
  const TensorView result = ctx.scratch->allocate(dtype_of<Value>, {1});
  if (ctx.measuring() || n == 0) return std::nullopt;
  const bool vectors = vectors_allowed({x.reshape({n})});
  visit_float(x.dtype(), [&]<class T>() {
    launch(ctx, name, reduce_elements_kernel<Op, T>, grid, x.data<T>(), n, vectors,
           parts.data<Value>());
  });
  launch(ctx, name, reduce_parts_kernel<Op>, {.blocks = dim3(1), .threads = dim3(kReduceThreads)},
         parts.data<Value>(), count, result.data<Value>());
  Value value{};
  download(ctx.stream, result,
           TensorView(reinterpret_cast<std::byte*>(&value), dtype_of<Value>, {1}), ctx.poll);
  return value;
}

}  // namespace longhaul::kernels::cuda
