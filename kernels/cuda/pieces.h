// Operations on the elements of rows, a piece of 16 bytes or more at a time where every operand's
// alignment allows it and one by one where not. Rows are `stride` apart, each dense.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "kernels/core/tensor.h"
#include "kernels/cuda/device_code.h"
#include "kernels/cuda/divisor.h"
#include "kernels/cuda/launch.h"

namespace longhaul::kernels::cuda {

inline constexpr int64_t kVectorBytes = 16;  // of the widest access to memory

// kN neighbouring elements, read and written by as few instructions as there can be.
template <class T, int kN>
struct alignas(std::min<size_t>(kVectorBytes, kN * sizeof(T))) Pack {
  T e[kN];
};

// The first `count` elements (of kN, at least one) at p; the rest is zero.
template <int kN, class T>
__device__ __forceinline__ Pack<T, kN> load(const T* p, int64_t count) {
  if (count >= kN) return *reinterpret_cast<const Pack<T, kN>*>(p);
  Pack<T, kN> x{};
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (i < count) x.e[i] = p[i];
  }
  return x;
}
template <int kN, class T>
__device__ __forceinline__ void store(const Pack<T, kN>& x, T* p, int64_t count) {
  if (count >= kN) {
    *reinterpret_cast<Pack<T, kN>*>(p) = x;
    return;
  }
#pragma unroll
  for (int i = 0; i < kN; ++i) {
    if (i < count) p[i] = x.e[i];
  }
}

// Elements of a piece whose narrowest operand has type T.
template <class T>
inline constexpr int kPiece = static_cast<int>(kVectorBytes / sizeof(T));

template <class T>
struct Rows {
  T* p;
  int64_t stride;
  __device__ T* at(int64_t row, int64_t column) const { return p + row * stride + column; }
};
template <class T>
Rows<const T> rows_of(const ConstTensorView& x) {
  return {x.data<T>(), x.stride(0)};
}
template <class T>
Rows<T> rows_to(const TensorView& x) {
  return {x.data<T>(), x.stride(0)};
}

// Whether all rows of all views begin where vectors may.
inline bool vectors_allowed(std::initializer_list<ConstTensorView> views) {
  return std::all_of(views.begin(), views.end(), [](const ConstTensorView& x) {
    return reinterpret_cast<uintptr_t>(x.raw()) % kVectorBytes == 0 &&
           (x.dim(0) <= 1 || x.rank() <= 1 || x.stride(0) * size_of(x.dtype()) % kVectorBytes == 0);
  });
}

template <int kN, class F>
__global__ void pieces_kernel(int64_t rows, int64_t width, int64_t pieces, Divisor by_pieces, F f) {
  for (int64_t i = grid_first(); i < rows * pieces; i += grid_stride()) {
    const int64_t row = by_pieces.quotient(i), column = (i - row * pieces) * kN;
    f.template run<kN>(row, column, std::min<int64_t>(kN, width - column));
  }
}

// f.run<kN>(row, column, count) for pieces of `count` <= kN elements that cover rows x width; kN is
// kPiece<T> with vectors and 1 without.
template <class T, class F>
void for_pieces(const Context& ctx, const char* name, int64_t rows, int64_t width, bool vectors,
                const F& f) {
  if (rows == 0 || width == 0) return;
  const auto launch_pieces = [&]<int kN>() {
    const int64_t pieces = (width + kN - 1) / kN;  // of a row
    launch(ctx, name, pieces_kernel<kN, F>, grid_for(rows * pieces), rows, width, pieces,
           Divisor(pieces), f);
  };
  if (vectors) {
    launch_pieces.template operator()<kPiece<T>>();
  } else {
    launch_pieces.template operator()<1>();
  }
}

}  // namespace longhaul::kernels::cuda
