#include "kernels/angle_table.h"

#include <cmath>
#include <vector>

#include "kernels/checks.h"
#include "kernels/core/transfer.h"

namespace longhaul::kernels {

namespace {

// cos and sin of position * frequency for all frequencies, as pairs.
void turn(std::span<const double> frequencies, int64_t position, double* cos, double* sin) {
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
void fill(std::span<const double> frequencies, std::span<const int64_t> positions, double amplitude,
          A* cos, A* sin) {
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
      *cos++ = static_cast<A>(amplitude * (coarse_cos[d] * c[d] - coarse_sin[d] * s[d]));
      *sin++ = static_cast<A>(amplitude * (coarse_sin[d] * c[d] + coarse_cos[d] * s[d]));
    }
  }
}

}  // namespace

void angle_table(const Stream& stream, std::span<const double> frequencies,
                 std::span<const int64_t> positions, TensorView cos, TensorView sin,
                 double amplitude) {
  LONGHAUL_CHECK(cos.dtype() == DType::kF32 || cos.dtype() == DType::kF64, "angles: cos");
  const Shape shape{static_cast<int64_t>(positions.size()),
                    static_cast<int64_t>(frequencies.size())};
  expect_dense(cos, "angles: cos", cos.dtype(), shape);
  expect_dense(sin, "angles: sin", cos.dtype(), shape);
  if (cos.raw() == nullptr) return;  // a measuring run
  const auto write = [&](const TensorView& c, const TensorView& s) {
    if (c.dtype() == DType::kF32) {
      fill(frequencies, positions, amplitude, c.data<float>(), s.data<float>());
    } else {
      fill(frequencies, positions, amplitude, c.data<double>(), s.data<double>());
    }
  };
  if (stream.device == kCpu) return write(cos, sin);
  const Tensor host_cos(cos.dtype(), shape), host_sin(cos.dtype(), shape);
  write(host_cos, host_sin);
  upload(stream, host_cos, cos);
  upload(stream, host_sin, sin);
}

}  // namespace longhaul::kernels
