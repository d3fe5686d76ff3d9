// The decay over a chunk as a sum of its gates. The error of a sum, or of a product of rounded
// gates, would be the decay's, and add up over a run's chunks where gates are alike.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <limits>

namespace longhaul::kernels::cuda {

struct GateSum {
  double sum = 0, rest = 0;  // what rounding took away

  // As Knuth adds two numbers without error.
  __device__ __forceinline__ void add(double x) {
    const double next = sum + x;
    if (next != -std::numeric_limits<double>::infinity()) {
      const double added = next - sum;
      rest += (sum - (next - added)) + (x - added);
    }
    sum = next;
  }

  // e^sum, 0 if too small for a normal number, and what rounding took away.
  template <class A>
  __device__ __forceinline__ void decay(A& rounded, A& lost) const {
    const double exact = exp(sum);
    const bool none = exact < static_cast<double>(std::numeric_limits<A>::min());
    rounded = none ? A(0) : static_cast<A>(exact);
    lost = none ? A(0) : static_cast<A>((exact - static_cast<double>(rounded)) + exact * rest);
  }
};

}  // namespace longhaul::kernels::cuda
