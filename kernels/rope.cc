#include "kernels/rope.h"

#include <cmath>
#include <numbers>
#include <vector>

#include "kernels/backend.h"
#include "kernels/checks.h"
#include "kernels/core/transfer.h"

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

// cos and sin of position * frequency for all frequencies, as pairs.
void turn(const std::vector<double>& frequencies, int64_t position, double* cos, double* sin) {
  for (size_t d = 0; d < frequencies.size(); ++d) {
    const double angle = static_cast<double>(position) * frequencies[d];
    cos[d] = std::cos(angle);
    sin[d] = std::sin(angle);
  }
}

// Positions mostly follow one another, so each is split into kStep * n + rest: cos and sin of the
// two parts are computed once per n and per rest, and joined by the formula for sums of angles, in
// f64.
constexpr int64_t kStep = 256;

template <class A>
void fill(const std::vector<double>& frequencies, std::span<const int64_t> positions, A* cos,
          A* sin) {
  const size_t half = frequencies.size();
  std::vector<double> fine_cos(kStep * half), fine_sin(kStep * half), coarse_cos(half),
      coarse_sin(half);
  std::vector<bool> known(kStep);
  int64_t coarse = -1;
  for (int64_t position : positions) {
    const auto rest = static_cast<size_t>(position % kStep);
    double *c = fine_cos.data() + rest * half, *s = fine_sin.data() + rest * half;
    if (!known[rest]) turn(frequencies, position % kStep, c, s);
    known[rest] = true;
    if (position - position % kStep != coarse) {
      coarse = position - position % kStep;
      turn(frequencies, coarse, coarse_cos.data(), coarse_sin.data());
    }
    for (size_t d = 0; d < half; ++d) {
      *cos++ = static_cast<A>(coarse_cos[d] * c[d] - coarse_sin[d] * s[d]);
      *sin++ = static_cast<A>(coarse_sin[d] * c[d] + coarse_cos[d] * s[d]);
    }
  }
}

}  // namespace

void rope_table(const Stream& stream, const RopeOptions& options,
                std::span<const int64_t> positions, int64_t head_dim, TensorView cos,
                TensorView sin) {
  LONGHAUL_CHECK(head_dim >= 0 && head_dim % 2 == 0, "rope: head_dim is even");
  LONGHAUL_CHECK(cos.dtype() == DType::kF32 || cos.dtype() == DType::kF64, "rope: cos");
  const int64_t half = head_dim / 2;
  const Shape shape{static_cast<int64_t>(positions.size()), half};
  expect_dense(cos, "rope: cos", cos.dtype(), shape);
  expect_dense(sin, "rope: sin", cos.dtype(), shape);
  if (cos.raw() == nullptr) return;  // a measuring run
  std::vector<double> frequencies;
  for (int64_t d = 0; d < half; ++d) {
    const double frequency =
        std::pow(options.theta, -2.0 * static_cast<double>(d) / static_cast<double>(head_dim));
    frequencies.push_back(options.scaling ? scaled(frequency, *options.scaling) : frequency);
  }
  const auto write = [&](const TensorView& c, const TensorView& s) {
    if (c.dtype() == DType::kF32) {
      fill(frequencies, positions, c.data<float>(), s.data<float>());
    } else {
      fill(frequencies, positions, c.data<double>(), s.data<double>());
    }
  };
  if (stream.device == kCpu) return write(cos, sin);
  const Tensor host_cos(cos.dtype(), shape), host_sin(cos.dtype(), shape);
  write(host_cos, host_sin);
  upload(stream, host_cos, cos);
  upload(stream, host_sin, sin);
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
