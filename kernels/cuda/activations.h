// Activations of single elements, with their derivatives.
#pragma once

#include <cuda_runtime.h>

#include "kernels/activation.h"

namespace longhaul::kernels::cuda {

// What both sides of 0 are made of without overflow or cancellation: e = e^-|x|, 1 / (1 + e), whose
// product with e is the rest to 1.
template <class A>
struct Sides {
  A e, larger, smaller;
};
template <class A>
__device__ __forceinline__ Sides<A> sides(A x) {
  const A e = exp(-fabs(x)), larger = A(1) / (A(1) + e);
  return {e, larger, e * larger};
}

// log(1 + e^z) where `side` is that of z or of -z; NaN stays NaN.
template <class A>
__device__ __forceinline__ A softplus(A z, const Sides<A>& side) {
  return (z < A(0) ? A(0) : z) + log1p(side.e);
}

template <class A>
struct ValueAndSlope {
  A value, slope;
};

template <Activation kAct, class A>
__device__ __forceinline__ A activate(A x) {
  if constexpr (kAct == Activation::kSilu) {
    return x / (A(1) + exp(-x));
  } else if constexpr (kAct == Activation::kSigmoid) {
    return A(1) / (A(1) + exp(-x));
  } else if constexpr (kAct == Activation::kLogSigmoid) {
    return -softplus(-x, sides(x));
  } else {
    static_assert(kAct == Activation::kIdentity);
    return x;
  }
}

template <Activation kAct, class A>
__device__ __forceinline__ ValueAndSlope<A> activate_with_slope(A x) {
  if constexpr (kAct == Activation::kSilu) {
    const A sigmoid = A(1) / (A(1) + exp(-x));
    return {x * sigmoid, sigmoid * (A(1) + x * (A(1) - sigmoid))};
  } else if constexpr (kAct == Activation::kSigmoid) {
    const Sides<A> side = sides(x);
    return {x < A(0) ? side.smaller : side.larger, side.smaller * side.larger};
  } else if constexpr (kAct == Activation::kLogSigmoid) {
    const Sides<A> side = sides(x);
    return {-softplus(-x, side), x < A(0) ? side.larger : side.smaller};
  } else {
    static_assert(kAct == Activation::kIdentity);
    return {x, A(1)};
  }
}

}  // namespace longhaul::kernels::cuda
