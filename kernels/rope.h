// Rotary position embedding (Su et al. 2021), in the half-split form of the Llama models: element d
// is rotated with element d + D/2.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "kernels/core/context.h"

namespace longhaul::kernels {

// The frequency correction of Llama 3.1 ("rope_type": "llama3" in Hugging Face configurations).
struct RopeScaling {
  double factor = 8.0;
  double low_frequency_factor = 1.0;
  double high_frequency_factor = 4.0;
  int64_t original_length = 8192;
};

struct RopeOptions {
  double theta = 10000.0;
  std::optional<RopeScaling> scaling{};
};

// cos and sin of every position: [T, D/2], accumulator type. Angles are computed in f64, since f32
// is off by 0.03 rad at position 1M. Computed on the host, whatever the tables' device.
void rope_table(const Stream&, const RopeOptions&, std::span<const int64_t> positions,
                int64_t head_dim, TensorView cos, TensorView sin);

struct Rope {
  ConstTensorView cos, sin;  // [T, D/2]
  bool inverse = false;      // the gradient is the rotation by the negative angle
  TensorView x;              // [T, H, D], in place; rows may have any stride
};
void rope(const Context&, const Rope&);

struct RopeKernel {
  std::string_view name;
  DType dtype;
  bool (*available)();
  void (*run)(const Context&, const Rope&);
};

}  // namespace longhaul::kernels
