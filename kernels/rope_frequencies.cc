// The frequencies of rotary embedding, as _compute_..._parameters of Hugging Face's
// modeling_rope_utils define them.
#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "kernels/core/error.h"
#include "kernels/rope.h"

namespace longhaul::kernels {

namespace {

constexpr std::array kKinds{
    RopeScalingName{"llama3", RopeScalingKind::kLlama3},
    RopeScalingName{"linear", RopeScalingKind::kLinear},
    RopeScalingName{"dynamic", RopeScalingKind::kDynamic},
    RopeScalingName{"yarn", RopeScalingKind::kYarn},
};

// Slow frequencies (wavelength beyond original_length / low_frequency_factor) are divided by
// `factor`, fast ones kept, and those between blended linearly in original_length / wavelength.
double llama3(double frequency, const RopeScaling& scaling) {
  const double turns =
      static_cast<double>(scaling.original_length) * frequency / (2 * std::numbers::pi);
  if (turns < scaling.low_frequency_factor) return frequency / scaling.factor;
  if (turns > scaling.high_frequency_factor) return frequency;
  const double smooth = (turns - scaling.low_frequency_factor) /
                        (scaling.high_frequency_factor - scaling.low_frequency_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

// Such that the slowest frequency is that of linear interpolation to the sample's length.
double dynamic_base(const RopeOptions& options, int64_t head_dim) {
  const RopeScaling& scaling = *options.scaling;
  const auto original = static_cast<double>(scaling.original_length),
             dim = static_cast<double>(head_dim);
  const double length = std::max(original, static_cast<double>(options.length));
  const double stretch = scaling.factor * length / original - (scaling.factor - 1);
  return dim > 2 ? options.theta * std::pow(stretch, dim / (dim - 2)) : options.theta;
}

// The dimension whose frequency makes so many turns in the original length.
double dimension_of(double turns, const RopeOptions& options, int64_t head_dim) {
  const auto length = static_cast<double>(options.scaling->original_length);
  return static_cast<double>(head_dim) * std::log(length / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(options.theta));
}

void apply_yarn(const RopeOptions& options, int64_t head_dim, std::vector<double>& frequencies) {
  const RopeScaling& scaling = *options.scaling;
  double low = dimension_of(scaling.beta_fast, options, head_dim),
         high = dimension_of(scaling.beta_slow, options, head_dim);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim) - 1);
  if (low == high) high += 0.001;
  for (size_t d = 0; d < frequencies.size(); ++d) {
    const double divided = std::clamp((static_cast<double>(d) - low) / (high - low), 0.0, 1.0);
    frequencies[d] *= divided / scaling.factor + (1 - divided);
  }
}

double sharper(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace

std::span<const RopeScalingName> rope_scaling_kinds() { return kKinds; }

std::string_view name_of(RopeScalingKind kind) {
  for (const RopeScalingName& row : kKinds) {
    if (row.value == kind) return row.name;
  }
  check_failed(__FILE__, __LINE__, "every kind has a name");
}

std::vector<double> rope_frequencies(const RopeOptions& options, int64_t head_dim) {
  const std::optional<RopeScaling>& scaling = options.scaling;
  const auto is = [&](RopeScalingKind kind) { return scaling && scaling->kind == kind; };
  const double base =
      is(RopeScalingKind::kDynamic) ? dynamic_base(options, head_dim) : options.theta;
  std::vector<double> frequencies;
  for (int64_t d = 0; d < head_dim / 2; ++d) {
    const double frequency =
        std::pow(base, -2.0 * static_cast<double>(d) / static_cast<double>(head_dim));
    frequencies.push_back(is(RopeScalingKind::kLlama3)   ? llama3(frequency, *scaling)
                          : is(RopeScalingKind::kLinear) ? frequency / scaling->factor
                                                         : frequency);
  }
  if (is(RopeScalingKind::kYarn)) apply_yarn(options, head_dim, frequencies);
  return frequencies;
}

double rope_amplitude(const RopeOptions& options) {
  if (!options.scaling || options.scaling->kind != RopeScalingKind::kYarn) return 1.0;
  const RopeScaling& s = *options.scaling;
  if (s.attention_factor > 0) return s.attention_factor;
  if (s.mscale > 0 && s.mscale_all_dim > 0) {
    return sharper(s.factor, s.mscale) / sharper(s.factor, s.mscale_all_dim);
  }
  return sharper(s.factor, 1.0);
}

}  // namespace longhaul::kernels
