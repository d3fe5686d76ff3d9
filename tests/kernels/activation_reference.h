// The activations in extended precision, for tests of what applies them.
#pragma once

#include <cmath>
#include <string>

#include "kernels/activation.h"

namespace longhaul::kernels::testing {

inline std::string to_string(Activation activation) {
  switch (activation) {
    case Activation::kIdentity:
      return "identity";
    case Activation::kSilu:
      return "silu";
    case Activation::kSigmoid:
      return "sigmoid";
    case Activation::kLogSigmoid:
      return "log_sigmoid";
  }
  return "?";
}

inline double true_value(Activation activation, double at) {
  const long double x = at;
  switch (activation) {
    case Activation::kIdentity:
      return at;
    case Activation::kSilu:
      return static_cast<double>(x / (1 + std::exp(-x)));
    case Activation::kSigmoid:
      return static_cast<double>(1 / (1 + std::exp(-x)));
    case Activation::kLogSigmoid:
      // Without log1p where e^-x is beyond the range even of extended precision.
      return static_cast<double>(x < -1000 ? x : -std::log1p(std::exp(-x)));
  }
  return std::nan("");
}

// By the quotient rule on 1 / (1 + e^-x).
inline double true_slope(Activation activation, double at) {
  const long double x = at, e = std::exp(-x);
  switch (activation) {
    case Activation::kIdentity:
      return 1;
    case Activation::kSilu:
      return static_cast<double>((1 + e + x * e) / (1 + e) / (1 + e));
    case Activation::kSigmoid:
      return static_cast<double>(e / (1 + e) / (1 + e));
    case Activation::kLogSigmoid:
      return static_cast<double>(e / (1 + e));
  }
  return std::nan("");
}

}  // namespace longhaul::kernels::testing
