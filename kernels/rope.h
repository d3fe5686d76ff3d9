// Rotary position embedding (Su et al. 2021), in the half-split form of the Llama models: element d
// is rotated with element d + D/2.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/core/context.h"

namespace longhaul::kernels {

// How frequencies change for samples longer than a model was made for; names and formulas are those
// of Hugging Face configurations (rope_scaling).
enum class RopeScalingKind : uint8_t {
  kLlama3,   // slow frequencies are divided by `factor` (Llama 3.1)
  kLinear,   // all are ("position interpolation", Chen et al. 2023)
  kDynamic,  // the base grows with the sample's length ("NTK-aware", bloc97 2023)
  kYarn,     // slow ones are, and scores are sharper (Peng et al. 2023)
};
struct RopeScalingName {
  std::string_view name;
  RopeScalingKind value;
};
std::span<const RopeScalingName> rope_scaling_kinds();
std::string_view name_of(RopeScalingKind kind);

struct RopeScaling {
  RopeScalingKind kind = RopeScalingKind::kLlama3;
  double factor = 8.0;
  double low_frequency_factor = 1.0;  // of llama3
  double high_frequency_factor = 4.0;
  int64_t original_length = 8192;  // of all but linear
  // Of yarn. Frequencies of more than beta_fast turns in original_length stay, those of less than
  // beta_slow are divided; between the two dimensions, whole numbers if truncate, it is blended.
  double beta_fast = 32.0;
  double beta_slow = 1.0;
  bool truncate = true;
  // By what queries and keys are multiplied; 0: 0.1 ln(factor) + 1, or, where both of the other two
  // are set, the quotient of 0.1 mscale ln(factor) + 1 and the same with mscale_all_dim (DeepSeek).
  double attention_factor = 0;
  double mscale = 0;
  double mscale_all_dim = 0;
};

struct RopeOptions {
  double theta = 10000.0;
  std::optional<RopeScaling> scaling{};
  int64_t length = 0;  // of samples; matters to kDynamic alone
};

// Radians a position of each pair of elements [D/2], and what cos and sin are multiplied by.
std::vector<double> rope_frequencies(const RopeOptions&, int64_t head_dim);
double rope_amplitude(const RopeOptions&);

// cos and sin of every position: [T, D/2], accumulator type, times the amplitude. Angles are
// computed in f64, since f32 is off by 0.03 rad at position 1M. Computed on the host, whatever the
// tables' device.
void rope_table(const Stream&, const RopeOptions&, std::span<const int64_t> positions,
                int64_t head_dim, TensorView cos, TensorView sin);

struct Rope {
  ConstTensorView cos, sin;  // [T, D/2]
  bool inverse = false;      // the gradient: by the negative angle, times the same amplitude
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
