#include "kernels/rope.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/angle_table.h"
#include "kernels/backend.h"
#include "kernels/checks.h"

namespace longhaul::kernels {

namespace {

// Slow frequencies (wavelength beyond original_length / low_frequency_factor) are divided by
// `factor`, fast ones kept, and those between blended linearly in original_length / wavelength.
double scaled(double frequency, const RopeScaling& scaling) {
  const double turns =
      static_cast<double>(scaling.original_length) * frequency / (2 * std::numbers::pi);
  if (turns < scaling.low_frequency_factor) return frequency / scaling.factor;
  if (turns > scaling.high_frequency_factor) return frequency;
  const double smooth = (turns - scaling.low_frequency_factor) /
                        (scaling.high_frequency_factor - scaling.low_frequency_factor);
  return (1 - smooth) * frequency / scaling.factor + smooth * frequency;
}

}  // namespace

void rope_table(const Stream& stream, const RopeOptions& options,
                std::span<const int64_t> positions, int64_t head_dim, TensorView cos,
                TensorView sin) {
  LONGHAUL_CHECK(head_dim >= 0 && head_dim % 2 == 0, "rope: head_dim is even");
  std::vector<double> frequencies;
  for (int64_t d = 0; d < head_dim / 2; ++d) {
    const double frequency =
        std::pow(options.theta, -2.0 * static_cast<double>(d) / static_cast<double>(head_dim));
    frequencies.push_back(options.scaling ? scaled(frequency, *options.scaling) : frequency);
  }
  angle_table(stream, frequencies, positions, cos, sin);
}

void rope(const Context& ctx, const Rope& args) {
  expect_float(args.x, "rope: x", 3);
  LONGHAUL_CHECK(args.x.dim(2) % 2 == 0, "rope: the head dimension is even");
  const DType dtype = args.x.dtype();
  const Shape shape{args.x.dim(0), args.x.dim(2) / 2};
  expect_dense(args.cos, "rope: cos", accumulator(dtype), shape);
  expect_dense(args.sin, "rope: sin", accumulator(dtype), shape);
  select(backend(ctx.device()).rope, "rope", ctx.device(), dtype).run(ctx, args);
}

}  // namespace longhaul::kernels
