// Linearised relative position encoding as TransNormerLLM has it (Qin et al. 2024, section 3.1):
// each element becomes a point on a circle, so that scores of two tokens depend on their distance.
// Heads double in width:
//
//   y[t, h, d] = x[t, h, d] cos(angle)    y[t, h, D + d] = x[t, h, d] sin(angle)
//   angle = position[t] * frequency[h, d]
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/core/context.h"

namespace longhaul::kernels {

// 10000^(-2 i / (H D)) for i = h D + d, the published frequencies (that code trains them, from
// here).
std::vector<double> lrpe_frequencies(int64_t heads, int64_t head_dim);

// cos and sin of all angles: [T, H, D], accumulator type; angles are computed in f64. On the host,
// whatever the tables' device. All layers share them.
void lrpe_table(const Stream&, std::span<const double> frequencies,
                std::span<const int64_t> positions, TensorView cos, TensorView sin);

struct LrpeForward {
  ConstTensorView cos, sin;  // [T, H, D] accumulator type
  ConstTensorView x;         // [T, H, D]; rows may have any stride
  TensorView y;              // [T, H, 2 D]; rows may have any stride
};
struct LrpeBackward {
  ConstTensorView cos, sin;  // [T, H, D] accumulator type
  ConstTensorView dy;        // [T, H, 2 D]
  TensorView dx;             // [T, H, D], overwritten
};

void lrpe_forward(const Context&, const LrpeForward&);
void lrpe_backward(const Context&, const LrpeBackward&);

struct LrpeKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();
  void (*forward)(const Context&, const LrpeForward&);
  void (*backward)(const Context&, const LrpeBackward&);
};

}  // namespace longhaul::kernels
