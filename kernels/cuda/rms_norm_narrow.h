// RMSNorm of rows that a warp can hold, as those of heads are: some lanes share a row, a piece
// each, and a block has many rows.
#pragma once

#include <bit>

#include "kernels/cuda/hardware.h"
#include "kernels/cuda/pieces.h"

namespace longhaul::kernels::cuda {

inline constexpr int kNarrowThreads = 256;

// Lanes of a row in pieces of kN, a power of two; 0 if a warp does not hold it.
template <int kN>
int lanes_of_row(int64_t channels) {
  const int64_t pieces = (channels + kN - 1) / kN;
  return pieces <= kWarp ? static_cast<int>(std::bit_ceil(static_cast<uint64_t>(pieces))) : 0;
}

// Over neighbouring lanes, a power of two of them.
template <class A>
__device__ __forceinline__ A sum_of_lanes(A x, int lanes) {
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}

// The weights of a piece: ones where there is no weight.
template <int kN, bool kWeight, class T>
__device__ __forceinline__ Pack<Accumulator<T>, kN> weights(const T* weight, int64_t column,
                                                            int64_t count) {
  using A = Accumulator<T>;
  Pack<A, kN> result;
  if constexpr (kWeight) {
    const Pack<T, kN> w = load<kN>(weight + column, count);
#pragma unroll
    for (int i = 0; i < kN; ++i) result.e[i] = static_cast<A>(w.e[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kN; ++i) result.e[i] = A(1);
  }
  return result;
}

template <class T, int kN, bool kWeight>
__global__ void __launch_bounds__(kNarrowThreads)
    narrow_forward_kernel(int64_t rows, int64_t channels, int lanes, Rows<const T> x,
                          const T* weight, Accumulator<T> eps, Accumulator<T> scale, Rows<T> y,
                          Accumulator<T>* rstd) {
  using A = Accumulator<T>;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t column = int64_t{lane} * kN, here = std::clamp<int64_t>(channels - column, 0, kN);
  const Pack<A, kN> w = weights<kN, kWeight>(weight, column, here);
  const int64_t at_once = grid_stride() / lanes, own = grid_first() / lanes;
  // Whole warps go on, for the shuffles.
  for (int64_t first = 0; first < rows; first += at_once) {
    const int64_t row = first + own, count = row < rows ? here : 0;
    const Pack<T, kN> v = load<kN>(x.at(row, column), count);
    A squares = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) squares += static_cast<A>(v.e[i]) * static_cast<A>(v.e[i]);
    squares = sum_of_lanes(squares, lanes);
    const A r = A(1) / sqrt(squares / static_cast<A>(channels) + eps), factor = r * scale;
    Pack<T, kN> result;
#pragma unroll
    for (int i = 0; i < kN; ++i) result.e[i] = T(static_cast<A>(v.e[i]) * factor * w.e[i]);
    store(result, y.at(row, column), count);
    if (lane == 0 && row < rows) rstd[row] = r;
  }
}

// parts[blockIdx.x] = this block's share of dweight, if there is a weight. Dynamic shared memory:
// [rows at once][channels], for the sums of each row of the block's.
template <class T, int kN, bool kWeight>
__global__ void __launch_bounds__(kNarrowThreads)
    narrow_backward_kernel(int64_t rows, int64_t channels, int lanes, Rows<const T> dy,
                           Rows<const T> x, const T* weight, const Accumulator<T>* rstd,
                           Accumulator<T> scale, Rows<T> dx, Accumulator<T>* parts,
                           int64_t part_stride) {
  using A = Accumulator<T>;
  const int lane = static_cast<int>(threadIdx.x) % lanes,
            own = static_cast<int>(threadIdx.x) / lanes;
  const int at_once = kNarrowThreads / lanes;
  const int64_t column = int64_t{lane} * kN, here = std::clamp<int64_t>(channels - column, 0, kN);
  const Pack<A, kN> w = weights<kN, kWeight>(weight, column, here);
  Pack<A, kN> sum{};
  const int64_t begin = rows * blockIdx.x / gridDim.x, end = rows * (blockIdx.x + 1) / gridDim.x;
  for (int64_t first = begin; first < end; first += at_once) {
    const int64_t row = first + own, count = row < end ? here : 0;
    const A r = row < end ? rstd[row] : A(0), factor = r * scale;
    const Pack<T, kN> g = load<kN>(dy.at(row, column), count);
    const Pack<T, kN> v = load<kN>(x.at(row, column), count);
    Pack<T, kN> d = load<kN>(dx.at(row, column), count);
    A along = 0;
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      along += static_cast<A>(g.e[i]) * w.e[i] * (static_cast<A>(v.e[i]) * r);
    }
    const A mean = sum_of_lanes(along, lanes) / static_cast<A>(channels);
#pragma unroll
    for (int i = 0; i < kN; ++i) {
      const A gradient = static_cast<A>(g.e[i]), normal = static_cast<A>(v.e[i]) * r;
      d.e[i] = T(static_cast<A>(d.e[i]) + factor * (gradient * w.e[i] - normal * mean));
      sum.e[i] += scale * gradient * normal;
    }
    store(d, dx.at(row, column), count);
  }
  if constexpr (kWeight) {
    A* const sums = reinterpret_cast<A*>(dynamic_shared());
    for (int i = 0; i < here; ++i) sums[own * channels + column + i] = sum.e[i];
    __syncthreads();
    for (int64_t c = threadIdx.x; c < channels; c += kNarrowThreads) {
      A total = 0;
      for (int n = 0; n < at_once; ++n) total += sums[n * channels + c];
      parts[blockIdx.x * part_stride + c] = total;
    }
  }
}

}  // namespace longhaul::kernels::cuda
