#include "launch/check/deviation.h"

#include <algorithm>
#include <limits>
#include <optional>

#include "absl/strings/str_format.h"

namespace longhaul::launch {

namespace {

constexpr double kExact = 1e-10;  // of f64

const Deviation& worst_of(std::span<const Deviation> deviations) {
  LONGHAUL_CHECK(!deviations.empty());
  const Deviation* worst = &deviations.front();
  for (const Deviation& d : deviations) {
    if (worst->too_large()) break;
    if (!(d.max_relative_error / d.limit <= worst->max_relative_error / worst->limit)) worst = &d;
  }
  return *worst;
}

}  // namespace

void keep_worst(Deviation& worst, const std::string& tensor, DType dtype, double error,
                double own) {
  Deviation d{.tensor = tensor, .dtype = dtype, .max_relative_error = error, .limit = kExact};
  if (dtype != DType::kF64) {
    // Where one rank happens to make no error, others may still round.
    d.limit = 2 * std::max<double>(own, 8 * std::numeric_limits<float>::epsilon());
  }
  const bool first = worst.tensor.empty();
  if (first || (!worst.too_large() &&
                !(d.max_relative_error / d.limit <= worst.max_relative_error / worst.limit))) {
    worst = d;
  }
}

void require_small(dist::Group& world, const Subject& subject,
                   std::span<const Deviation> deviations) {
  const Deviation& worst = worst_of(deviations);
  std::optional<Error> mine;
  if (worst.too_large()) {
    mine = Error(
        ErrorCode::kNumerics,
        absl::StrFormat(
            "check: %s of %s deviates from one rank's by %.3g in %s, the limit is %.3g: results "
            "would be wrong; use another %s and report this",
            worst.tensor, subject.name, worst.max_relative_error, std::string(name(worst.dtype)),
            worst.limit, subject.setting));
  }
  world.agree(mine, "check");
}

std::string summary(const Subject& subject, std::span<const Deviation> deviations) {
  const Deviation& worst = worst_of(deviations);
  return absl::StrFormat("%s equals one rank: largest deviation %.0f%% of its limit (%s in %s)",
                         subject.name, 100 * worst.max_relative_error / worst.limit, worst.tensor,
                         std::string(name(worst.dtype)));
}

}  // namespace longhaul::launch
