// cos and sin of the angles position * frequency, for encodings of positions (kernels/rope.h,
// kernels/lrpe.h). Angles are computed in f64, since f32 is off by 0.03 rad at position 1M.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/stream.h"
#include "kernels/core/tensor.h"

namespace longhaul::kernels {

// Times `amplitude`; cos, sin [positions, frequencies], dense, both f32 or both f64; positions >=
// 0. Computed on the host and uploaded, whatever the tables' device.
void angle_table(const Stream&, std::span<const double> frequencies,
                 std::span<const int64_t> positions, TensorView cos, TensorView sin,
                 double amplitude = 1.0);

}  // namespace longhaul::kernels
