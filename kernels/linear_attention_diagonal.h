// What each token contributes to itself in linear attention, for those who compute it twice:
// bidirectional attention as one over earlier tokens and one over later ones, both with the token
// itself. For each row t and head h,
//
//   y[t, h] -= (a[t, h] . b[t, h]) c[t, h]
//
//   a, b [T, H, Da]   c [T, H, Dc]   one dtype: bf16, f32 or f64; last dimension dense
//   y    [T, H, Dc]                  accumulator type, dense
//
// so that out loses (q . k) v, dq (dout . v) k, dk (dout . v) q and dv (q . k) dout. Throws
// Error(kInternal) for shapes that contradict each other.
#pragma once

#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

struct LinearAttentionDiagonal {
  ConstTensorView a, b, c;
  TensorView y;
};

void linear_attention_subtract_diagonal(const Context&, const LinearAttentionDiagonal&);

struct LinearAttentionDiagonalKernel {
  std::string_view name;
  DType dtype;  // of a, b and c
  bool (*available)();
  void (*subtract)(const Context&, const LinearAttentionDiagonal&);
};

}  // namespace longhaul::kernels
